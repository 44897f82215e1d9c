"""The k3 estimator: hand-computed values, unbiasedness over the vocabulary, its gradient."""

import math

import pytest
import torch

from system.losses.kl import k3_kl


def test_values_by_hand() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    reference = torch.tensor([-1.0, -1.0, -1.5], dtype=torch.float64)
    expected = torch.tensor([0.0, math.e - 2.0, math.exp(-1.0)], dtype=torch.float64)
    torch.testing.assert_close(k3_kl(logprobs, reference_logprobs=reference), expected, rtol=0, atol=1e-14)


def test_expectation_under_the_policy_is_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = torch.randn(2, 50, generator=generator, dtype=torch.float64).log_softmax(dim=-1)
    expectation = (log_p.exp() * k3_kl(log_p, reference_logprobs=log_q)).sum()
    torch.testing.assert_close(expectation, (log_p.exp() * (log_p - log_q)).sum())


def test_small_differences_are_not_lost_to_rounding_in_float32() -> None:
    value = k3_kl(torch.tensor([-2.0]), reference_logprobs=torch.tensor([-2.0 + 2.0**-10]))
    assert value.item() == pytest.approx(2.0**-21, rel=1e-3)


def test_it_is_never_negative() -> None:
    generator = torch.Generator().manual_seed(1)
    current, reference = -torch.rand(2, 10_000, generator=generator) * 20
    assert float(k3_kl(current, reference_logprobs=reference).min()) >= 0.0


def test_gradient_matches_finite_differences() -> None:
    logprobs = torch.tensor([-1.0, -2.5, -0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.2, -2.0, -0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: k3_kl(values, reference_logprobs=reference), (logprobs,))


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        k3_kl(torch.zeros(3), reference_logprobs=torch.zeros(1))
