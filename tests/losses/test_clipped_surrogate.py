"""The surrogate: hand-computed tokens, equality with PPO below the cap, the truncated gradient above it, dual clip."""

import math

import pytest
import torch

from system.losses.base import LossInputs
from system.losses.clipped_surrogate import ClippedSurrogate
from system.losses.options import ClippedSurrogateOptions
from tests.losses.loss_inputs import gradient_of, inputs_of


def surrogate(*, cap: float | None = 2.0, dual_clip: float | None = None) -> ClippedSurrogate:
    return ClippedSurrogate(
        ClippedSurrogateOptions(clip_low=0.2, clip_high=0.3, importance_cap=cap, dual_clip=dual_clip)
    )


def test_values_and_gradients_by_hand() -> None:
    #  on-policy, moved too far up, moved too far down, the two harmless directions, beyond the cap
    inputs = inputs_of([1.0, 1.5, 0.5, 1.5, 0.5, 4.0], [2.0, 2.0, -1.0, -1.0, 2.0, -1.0])
    outputs, gradient = gradient_of(surrogate(), inputs)
    assert outputs.loss.tolist() == pytest.approx([-2.0, -2.6, 0.8, 1.5, -1.0, 2.0])
    assert outputs.is_clipped.tolist() == [False, True, True, False, False, False]
    assert outputs.is_truncated.tolist() == [False, False, False, False, False, True]
    assert gradient == pytest.approx([-2.0, 0, 0, 1.5, -1.0, 2.0])


def test_below_the_cap_it_is_ppo() -> None:
    generator = torch.Generator().manual_seed(0)
    ratios = (torch.rand(200, generator=generator) * 1.9 + 0.05).tolist()
    advantages = torch.randn(200, generator=generator).tolist()
    inputs = inputs_of(ratios, advantages)
    outputs, gradient = gradient_of(surrogate(), inputs)
    reference = inputs.logprobs.detach().clone().requires_grad_()
    ratio, advantage = (reference + 1.0).exp(), torch.tensor(advantages, dtype=torch.float64)
    ppo = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage)
    ppo.sum().backward()
    torch.testing.assert_close(outputs.loss.detach(), ppo.detach())
    torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), reference.grad)


def test_on_policy_the_gradient_is_the_policy_gradient() -> None:
    _, gradient = gradient_of(surrogate(), inputs_of([1.0, 1.0], [0.7, -1.3]))
    assert gradient == pytest.approx([-0.7, 1.3])


def test_without_correction_the_weight_is_one() -> None:
    outputs, gradient = gradient_of(surrogate(cap=None), inputs_of([1.1, 4.0], [1.0, -1.0]))
    assert outputs.importance_weight.tolist() == [1.0, 1.0]
    assert not outputs.is_truncated.any()
    assert gradient == [-1.0, 1.0]


def test_dual_clip_bounds_what_a_bad_token_costs() -> None:
    #  beyond dual_clip = 3: bad, good (clipped at 1.3 anyway), and a bad token below it
    inputs = inputs_of([5.0, 5.0, 2.5], [-1.0, 1.0, -1.0])
    outputs, gradient = gradient_of(surrogate(cap=10.0, dual_clip=3.0), inputs)
    assert outputs.loss.tolist() == pytest.approx([3.0, -1.3, 2.5])
    assert outputs.is_clipped.tolist() == [True, True, False]
    assert gradient == pytest.approx([0.0, 0.0, 2.5])


def test_dual_clip_is_the_paper_s_maximum() -> None:
    generator = torch.Generator().manual_seed(1)
    ratios = (torch.rand(200, generator=generator) * 6 + 0.05).tolist()
    advantages = torch.randn(200, generator=generator, dtype=torch.float64)
    inputs = inputs_of(ratios, advantages.tolist())
    outputs = surrogate(cap=10.0, dual_clip=3.0)(inputs)
    ratio = torch.tensor(ratios, dtype=torch.float64)
    ppo = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.3) * advantages)
    expected = torch.where(advantages < 0, torch.maximum(ppo, 3.0 * advantages), ppo)
    torch.testing.assert_close(-outputs.loss.detach(), expected, rtol=1e-6, atol=1e-9)


def test_half_precision_is_computed_in_float32() -> None:
    outputs = surrogate()(
        LossInputs(
            logprobs=torch.tensor([-1.0], dtype=torch.bfloat16),
            rollout_logprobs=torch.tensor([-1.01]),
            advantages=torch.tensor([1.0]),
            sequence_index=torch.tensor([0]),
            num_sequences=1,
        )
    )
    assert outputs.ratio.dtype == torch.float32
    assert outputs.ratio.item() == pytest.approx(math.exp(0.01), rel=1e-5)
