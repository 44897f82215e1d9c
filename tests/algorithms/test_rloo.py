"""RLOO by hand."""

import numpy as np

from system.algorithms.rloo import Rloo
from system.fields import NoOptions
from tests.algorithms.groups import context, scored


def test_each_reward_is_compared_with_the_mean_of_the_others() -> None:
    # 1 - (0 + 0.5) / 2, 0 - (1 + 0.5) / 2, 0.5 - (1 + 0) / 2 (arXiv 2402.14740, equation 9)
    credit = Rloo(NoOptions(), context=context()).credit([scored(1.0, 0.0, 0.5)])
    np.testing.assert_allclose([values[-1] for values in credit.groups[0].advantages], [0.75, -0.75, 0.0], atol=1e-7)
