"""GSPO: one importance ratio for a whole sequence, clipped as a whole (Zheng et al., arXiv 2507.18071)."""

import torch

from system.losses.base import LossInputs, LossOutputs, at_least_float32
from system.losses.options import GspoOptions


class Gspo:
    """Clipped surrogate whose ratio is the geometric mean of a sequence's token ratios.

    s_i = exp(1/|y_i| sum_t (log pi(t) - log mu(t)))                              (eq. 7)
    clipped_t = (A_t > 0 and s_i > 1 + clip_high) or (A_t < 0 and s_i < 1 - clip_low)
    loss_t = -clip(s_i, 1 - clip_low, 1 + clip_high) A_t    where clipped (a constant),
             -stop_gradient(s_i) A_t exp(log pi(t) - stop_gradient(log pi(t)))   elsewhere   (GSPO-token, eq. 14)

    |y_i| counts the sequence's loss tokens. With the denominator sequence_mean and one advantage a sequence, value
    and gradient are those of the paper's -min(s_i A_i, clip(s_i) A_i) (eq. 5); advantages may differ by token.
    """

    def __init__(self, options: GspoOptions) -> None:
        self._options = options

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        low, high = 1 - self._options.clip_low, 1 + self._options.clip_high
        current = at_least_float32(inputs.logprobs)
        advantages = inputs.advantages.to(current.dtype)
        log_ratios = inputs.log_ratios()
        sums = log_ratios.new_zeros(2, inputs.num_sequences)
        sums.index_add_(1, inputs.sequence_index, torch.stack([log_ratios, torch.ones_like(log_ratios)]))
        ratio = (sums[0] / sums[1].clamp(min=1.0)).exp()[inputs.sequence_index]
        is_clipped = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
        unclipped = ratio * advantages * (current - current.detach()).exp()
        return LossOutputs(
            loss=-torch.where(is_clipped, ratio.clamp(low, high) * advantages, unclipped),
            ratio=ratio,
            importance_weight=ratio,
            is_clipped=is_clipped,
            is_truncated=torch.zeros_like(is_clipped),
        )
