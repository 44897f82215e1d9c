"""GSPO: one ratio for all tokens of a sequence, and the paper's objective under sequence_mean."""

import pytest
import torch

from system.losses.gspo import Gspo
from system.losses.options import GspoOptions
from tests.losses.loss_inputs import gradient_of, inputs_of

GSPO = Gspo(GspoOptions(clip_low=0.2, clip_high=0.3))


def test_values_and_gradients_by_hand() -> None:
    # sequences by turns: ratios 2 and 0.5 give 1; 4 and 1 give 2 (clipped for a good one); 0.25 alone, a bad one
    inputs = inputs_of([2.0, 4.0, 0.5, 1.0, 0.25], [1.0, 1.0, 1.0, 1.0, -2.0], sequence_index=[0, 1, 0, 1, 2])
    outputs, gradient = gradient_of(GSPO, inputs)
    assert outputs.ratio.tolist() == pytest.approx([1.0, 2.0, 1.0, 2.0, 0.25])
    assert outputs.is_clipped.tolist() == [False, True, False, True, True]
    assert outputs.loss.tolist() == pytest.approx([-1.0, -1.3, -1.0, -1.3, 1.6])
    assert gradient == pytest.approx([-1.0, 0.0, -1.0, 0.0, 0.0])


def test_under_sequence_mean_value_and_gradient_are_those_of_equation_5() -> None:
    generator = torch.Generator().manual_seed(0)
    index = torch.tensor([0] * 3 + [1] * 5 + [2] * 2 + [3] * 7)
    scale = torch.tensor([1.6, 0.7, 1.0, 1.0])[index]  # two sequences are clipped
    ratios = ((torch.rand(len(index), generator=generator) * 0.4 + 0.8) * scale).tolist()
    advantages = torch.tensor([1.0, -0.5, -1.5, 2.0], dtype=torch.float64)
    inputs = inputs_of(ratios, advantages[index].tolist(), sequence_index=index.tolist())
    lengths = index.bincount()
    weights = 1.0 / (lengths[index] * len(lengths))
    outputs, gradient = gradient_of(GSPO, inputs, weights=weights)

    logprobs = inputs.logprobs.detach().clone().requires_grad_()
    mean_log_ratio = torch.zeros(4, dtype=torch.float64).index_add(0, index, logprobs + 1.0) / lengths
    ratio = mean_log_ratio.exp()
    objective = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.3) * advantages).mean()
    objective.backward()
    assert 0 < int(outputs.is_clipped.sum()) < len(index)
    torch.testing.assert_close((outputs.loss * weights).sum().detach(), objective.detach())
    torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), logprobs.grad)


def test_a_sequence_without_loss_tokens_changes_nothing() -> None:
    inputs = inputs_of([2.0, 0.5], [1.0, 1.0], sequence_index=[1, 1])
    assert GSPO(inputs).ratio.tolist() == pytest.approx([1.0, 1.0])
