"""CISPO: the importance weight is clipped and no token loses its gradient (MiniMax-M1, arXiv 2506.13585)."""

import torch

from system.losses.base import LossInputs, LossOutputs, at_least_float32
from system.losses.options import CispoOptions


class Cispo:
    """REINFORCE with a clipped importance weight.

    r_t = exp(log pi(t) - log mu(t)),  w_t = stop_gradient(clip(r_t, 1 - clip_low, 1 + clip_high))   (eq. 5)
    loss_t = -w_t A_t log pi(t)                                                                       (eq. 4)

    `clip_low` None: no lower bound, as in the paper. The paper's denominator is token_mean over a group's tokens;
    here it is that of the whole step.
    """

    def __init__(self, options: CispoOptions) -> None:
        self._options = options

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        options = self._options
        low, high = 0.0 if options.clip_low is None else 1 - options.clip_low, 1 + options.clip_high
        current = at_least_float32(inputs.logprobs)
        ratio = inputs.log_ratios().exp()
        weight = ratio.clamp(low, high)
        return LossOutputs(
            loss=-weight * inputs.advantages.to(current.dtype) * current,
            ratio=ratio,
            importance_weight=weight,
            is_clipped=torch.zeros_like(ratio, dtype=torch.bool),
            is_truncated=(ratio > high) | (ratio < low),
        )
