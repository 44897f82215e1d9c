"""CISPO: hand-computed tokens; the weight is clipped, and no token loses its gradient."""

import pytest

from system.losses.cispo import Cispo
from system.losses.options import CispoOptions
from tests.losses.loss_inputs import gradient_of, inputs_of


def test_values_and_gradients_by_hand() -> None:
    # log-probabilities are log(ratio) - 1
    inputs = inputs_of([1.0, 4.0, 0.1], [2.0, 1.0, -1.0])
    outputs, gradient = gradient_of(Cispo(CispoOptions(clip_high=1.0)), inputs)
    assert outputs.importance_weight.tolist() == pytest.approx([1.0, 2.0, 0.1])
    assert outputs.is_truncated.tolist() == [False, True, False]
    assert not outputs.is_clipped.any()
    assert outputs.loss.tolist() == pytest.approx([2.0, -2.0 * (1.3862943611 - 1), 0.1 * (-2.3025850930 - 1)])
    assert gradient == pytest.approx([-2.0, -2.0, 0.1]), "-w A d(log pi), whatever the ratio"


def test_a_lower_bound_raises_small_weights() -> None:
    outputs, gradient = gradient_of(Cispo(CispoOptions(clip_low=0.2, clip_high=1.0)), inputs_of([0.1], [1.0]))
    assert outputs.is_truncated.tolist() == [True]
    assert gradient == pytest.approx([-0.8])
