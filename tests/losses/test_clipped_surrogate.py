"""The surrogate: hand-computed tokens, equality with PPO below the cap, the truncated gradient above it."""

import math

import pytest
import torch
from torch import Tensor

from system.losses.clipped_surrogate import PolicyLoss, clipped_surrogate


def surrogate(ratios: list[float], advantages: list[float], *, cap: float | None = 2.0) -> tuple[Tensor, PolicyLoss]:
    """Leaf log-probabilities whose ratios to a behaviour policy at -1 nat are `ratios`."""
    logprobs = (torch.tensor(ratios, dtype=torch.float64).log() - 1.0).requires_grad_()
    result = clipped_surrogate(
        logprobs,
        rollout_logprobs=torch.full((len(ratios),), -1.0, dtype=torch.float64),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.3,
        importance_cap=cap,
    )
    return logprobs, result


def test_values_and_gradients_by_hand() -> None:
    #  on-policy, moved too far up, moved too far down, the two harmless directions, beyond the cap
    ratios = [1.0, 1.5, 0.5, 1.5, 0.5, 4.0]
    advantages = [2.0, 2.0, -1.0, -1.0, 2.0, -1.0]
    logprobs, result = surrogate(ratios, advantages)
    expected = torch.tensor([-2.0, -2.6, 0.8, 1.5, -1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(result.loss.detach(), expected)
    assert result.is_clipped.tolist() == [False, True, True, False, False, False]
    assert result.is_truncated.tolist() == [False, False, False, False, False, True]
    result.loss.sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([-2.0, 0, 0, 1.5, -1.0, 2.0], dtype=torch.float64))


def test_below_the_cap_it_is_ppo() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = (torch.rand(200, generator=generator) * 1.9 + 0.05).tolist()
    advantages = torch.randn(200, generator=generator).tolist()
    logprobs, result = surrogate(ratios, advantages)
    result.loss.sum().backward()
    reference = logprobs.detach().clone().requires_grad_()
    ratio, advantage = (reference + 1.0).exp(), torch.tensor(advantages, dtype=torch.float64)
    ppo = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
    ppo.sum().backward()
    torch.testing.assert_close(result.loss.detach(), ppo.detach())
    torch.testing.assert_close(logprobs.grad, reference.grad)


def test_on_policy_the_gradient_is_the_policy_gradient() -> None:
    logprobs, result = surrogate([1.0, 1.0], [0.7, -1.3])
    result.loss.sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([-0.7, 1.3], dtype=torch.float64))


def test_without_correction_the_weight_is_one() -> None:
    logprobs, result = surrogate([1.1, 4.0], [1.0, -1.0], cap=None)
    assert result.importance_weight.tolist() == [1.0, 1.0]
    assert not result.is_truncated.any()
    result.loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.0, 1.0]


def test_half_precision_is_computed_in_float32() -> None:
    result = clipped_surrogate(
        torch.tensor([-1.0], dtype=torch.bfloat16),
        rollout_logprobs=torch.tensor([-1.01]),
        advantages=torch.tensor([1.0]),
        clip_low=0.2,
        clip_high=0.2,
        importance_cap=2.0,
    )
    assert result.ratio.dtype == torch.float32
    assert result.ratio.item() == pytest.approx(math.exp(0.01), rel=1e-5)


@pytest.mark.parametrize(("clip_low", "clip_high", "cap"), [(1.0, 0.2, 2.0), (0.2, -0.1, 2.0), (0.2, 0.2, 0.0)])
def test_bounds_out_of_range_are_refused(clip_low: float, clip_high: float, cap: float) -> None:
    with pytest.raises(ValueError, match="out of range"):
        clipped_surrogate(
            torch.zeros(1),
            rollout_logprobs=torch.zeros(1),
            advantages=torch.zeros(1),
            clip_low=clip_low,
            clip_high=clip_high,
            importance_cap=cap,
        )


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        clipped_surrogate(
            torch.zeros(2),
            rollout_logprobs=torch.zeros(1),
            advantages=torch.zeros(2),
            clip_low=0.2,
            clip_high=0.2,
            importance_cap=None,
        )
