"""What every loss takes and gives. The learner calls one object of this shape and knows no algorithm beyond it.

A loss sees the loss tokens of one micro-batch, whose sequences are whole, and answers for each token; the global
denominator, the KL term and the entropy bonus are the learner's. A loss named by an import path `package.module:Name`
is built like a built-in one: `Name(options)` with an instance of its `Options` dataclass, or `Name()` without one.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossInputs:
    """The M loss tokens of a micro-batch of B sequences. Raises ValueError for unequal shapes."""

    logprobs: Tensor  # float[M], nats, of the policy that is trained; the only one with gradient
    rollout_logprobs: Tensor  # float[M], nats, of the behaviour policy: the one that wrote the tokens
    advantages: Tensor  # float[M]
    sequence_index: Tensor  # int64[M], 0 .. B-1
    num_sequences: int  # B, those without a loss token included

    def __post_init__(self) -> None:
        others = (self.rollout_logprobs, self.advantages, self.sequence_index)
        if self.logprobs.dim() != 1 or any(other.shape != self.logprobs.shape for other in others):
            raise ValueError(
                f"logprobs {tuple(self.logprobs.shape)}, rollout_logprobs, advantages and sequence_index "
                f"{[tuple(other.shape) for other in others]} must have one shape [M]"
            )

    def log_ratios(self) -> Tensor:
        """log r_t = log pi(t) - log mu(t), float[M] without gradient, computed in float32 (float64 is kept)."""
        current = at_least_float32(self.logprobs.detach())
        return current - self.rollout_logprobs.to(current.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossOutputs:
    """Per-token terms, all [M]; only `loss` carries gradient. Raises ValueError for unequal shapes."""

    loss: Tensor  # to be minimised, before the denominator
    ratio: Tensor  # r_t = pi / mu as the loss uses it, not truncated
    importance_weight: Tensor  # what multiplies the advantage in the gradient where nothing is clipped
    is_clipped: Tensor  # bool: the token gives no gradient
    is_truncated: Tensor  # bool: its importance weight was capped

    def __post_init__(self) -> None:
        others = (self.ratio, self.importance_weight, self.is_clipped, self.is_truncated)
        if self.loss.dim() != 1 or any(other.shape != self.loss.shape for other in others):
            raise ValueError(
                f"loss {tuple(self.loss.shape)}, ratio, importance_weight, is_clipped and is_truncated "
                f"{[tuple(other.shape) for other in others]} must have one shape [M]"
            )


class Loss(Protocol):
    """Per-token loss against the behaviour policy."""

    def __call__(self, inputs: LossInputs) -> LossOutputs: ...


def at_least_float32(values: Tensor) -> Tensor:
    """`values` in float32; float64 is kept."""
    return values if values.dtype == torch.float64 else values.float()
