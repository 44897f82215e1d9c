"""REINFORCE++ by hand: whitening over the tokens of the batch."""

import numpy as np
import pytest

from system.algorithms.advantages import whitening
from system.algorithms.reinforce_pp import ReinforcePlusPlus, ReinforcePlusPlusOptions
from tests.algorithms.groups import context, scored


def test_whitening_weighs_each_value_by_its_tokens() -> None:
    # 1 1 1 0: mean 3/4, variance (3 * 1/16 + 9/16) / 3 = 1/4
    mean, scale = whitening(np.array([1.0, 0.0, np.nan]), counts=np.array([3, 1, 0]))
    np.testing.assert_allclose([mean, scale], [0.75, 2.0], rtol=1e-6)
    assert whitening(np.array([1.0]), counts=np.array([1])) == (0.0, 0.0)
    with pytest.raises(ValueError, match="finite"):
        whitening(np.array([np.nan]), counts=np.array([1]))
    with pytest.raises(ValueError, match="both be"):
        whitening(np.zeros(2), counts=np.ones(3, np.int64))


def test_rewards_are_whitened_over_the_tokens_of_all_groups() -> None:
    # tokens: 1 1 1 | 0, and an invalid one that counts nowhere; as above: (1 - 3/4) * 2, (0 - 3/4) * 2
    algorithm = ReinforcePlusPlus(ReinforcePlusPlusOptions(), context=context())
    credit = algorithm.credit([scored(1.0, texts=["000"]), scored(0.0, None, texts=["1", "22"])])
    first, second = credit.groups
    np.testing.assert_allclose(first.advantages[0], [0, 0, 0.5, 0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(second.advantages[0], [0, 0, -1.5], atol=1e-6)
    assert second.advantages[1].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_the_groups_mean_may_be_subtracted_first() -> None:
    # 0.5 -0.5 | 0 0: mean 0, variance 0.5 / 3
    algorithm = ReinforcePlusPlus(ReinforcePlusPlusOptions(subtract_group_mean=True), context=context())
    credit = algorithm.credit([scored(1.0, 0.0, texts=["0", "1"]), scored(1.0, 1.0, texts=["0", "1"])])
    values = [[float(each[-1]) for each in group.advantages] for group in credit.groups]
    np.testing.assert_allclose(values, [[1.2247449, -1.2247449], [0.0, 0.0]], atol=1e-5)
