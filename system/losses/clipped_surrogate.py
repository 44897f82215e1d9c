"""The clipped policy-gradient surrogate with truncated importance weights, and dual clip as an option.

With one optimizer step on a batch, the learner's own probability ratio "after / before the step" is exactly 1 and
clipping that ratio could never act. What does move is the distance to the policy that wrote the tokens: by staleness
(an older version generated the batch), by earlier optimizer steps on the same batch, and by the engine's arithmetic.
Both the clip and the importance weight therefore compare with the behaviour policy mu, whose log-probabilities came
with the tokens. On-policy the ratio is 1 up to rounding, nothing is clipped, and the gradient is the policy gradient.
"""

import torch

from system.losses.base import LossInputs, LossOutputs, at_least_float32
from system.losses.options import ClippedSurrogateOptions


class ClippedSurrogate:
    """Clipped surrogate against the behaviour policy, its importance weight truncated at a cap.

    r_t = exp(log pi(t) - log mu(t)),  w_t = stop_gradient(min(r_t, cap))
    clipped_t = (A_t > 0 and r_t > 1 + clip_high) or (A_t < 0 and r_t < 1 - clip_low)
    loss_t = -clip(r_t, 1 - clip_low, 1 + clip_high) A_t    where clipped (a constant),
             -dual_clip A_t                                  where A_t < 0 and r_t > dual_clip (a constant),
             -w_t A_t exp(log pi(t) - stop_gradient(log pi(t)))   elsewhere.

    Value and gradient equal PPO's -min(r A, clip(r) A) wherever r <= cap (Schulman et al., arXiv 1707.06347,
    eq. 7). Above the cap, which only a token with A <= 0 can reach unclipped when cap > 1 + clip_high, the
    gradient stays w_t A_t grad log pi instead of growing with r (truncated importance sampling).
    `importance_cap` None: w_t = 1, so that trainer/engine mismatch is left uncorrected.
    `dual_clip` c: max(min(r A, clip(r) A), c A) for A < 0 (Ye et al., arXiv 1912.09729, eq. 5); None: off.
    """

    def __init__(self, options: ClippedSurrogateOptions) -> None:
        self._options = options

    def __call__(self, inputs: LossInputs) -> LossOutputs:
        options = self._options
        low, high = 1 - options.clip_low, 1 + options.clip_high
        current = at_least_float32(inputs.logprobs)
        advantages = inputs.advantages.to(current.dtype)
        ratio = inputs.log_ratios().exp()
        if options.importance_cap is None:
            weight, is_truncated = torch.ones_like(ratio), torch.zeros_like(ratio, dtype=torch.bool)
        else:
            weight, is_truncated = ratio.clamp(max=options.importance_cap), ratio > options.importance_cap
        is_clipped = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
        bound = ratio.clamp(low, high)
        if options.dual_clip is not None:
            is_beyond = (advantages < 0) & (ratio > options.dual_clip)
            bound = torch.where(is_beyond, options.dual_clip, bound)
            is_clipped = is_clipped | is_beyond
        unclipped = weight * advantages * (current - current.detach()).exp()
        return LossOutputs(
            loss=-torch.where(is_clipped, bound * advantages, unclipped),
            ratio=ratio,
            importance_weight=weight,
            is_clipped=is_clipped,
            is_truncated=is_truncated,
        )
