"""Estimators of the Kullback-Leibler divergence from sampled tokens' log-probabilities."""

from torch import Tensor

from system.losses.base import at_least_float32


def k3_kl(logprobs: Tensor, *, reference_logprobs: Tensor) -> Tensor:
    """k3 estimate of KL(policy || reference) at each sampled token: exp(r - c) - (r - c) - 1, nats, >= 0.

    c = `logprobs`, r = `reference_logprobs`, both [N], cast to float32 (float64 is kept). Unbiased when the
    token was drawn from the policy, and differentiable in c. Source: J. Schulman, "Approximating KL
    divergence", 2020.

    Raises ValueError when the shapes differ.
    """
    if logprobs.shape != reference_logprobs.shape:
        raise ValueError(
            f"logprobs {tuple(logprobs.shape)} and reference_logprobs {tuple(reference_logprobs.shape)} "
            "must have one shape"
        )
    difference = at_least_float32(reference_logprobs) - at_least_float32(logprobs)
    # expm1 keeps the quadratic term that exp(x) - x - 1 loses to rounding for small differences.
    return difference.expm1() - difference
