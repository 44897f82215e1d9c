"""Which packed tokens carry loss, and with which weight: the only place where a loss denominator is applied."""

from typing import Literal

import torch
from torch import Tensor

LossDenominator = Literal["token_mean", "sequence_mean", "constant"]


def sequence_index(sequence_starts: Tensor) -> Tensor:
    """Sequence that each packed token belongs to.

    `sequence_starts` int[B+1] (ascending, from 0 to N); returns int64[N] with values 0 .. B-1.
    """
    if sequence_starts.dim() != 1 or len(sequence_starts) < 2:
        raise ValueError(f"sequence_starts must be [B+1] with B >= 1, got {tuple(sequence_starts.shape)}")
    lengths = sequence_starts.diff().long()
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def loss_token_weights(
    loss_mask: Tensor,
    *,
    sequence_starts: Tensor,
    denominator: LossDenominator,
    num_loss_tokens: int,
    num_sequences: int,
    constant_length: int | None = None,
) -> Tensor:
    """Weight of every packed token, so that the loss of a whole step is the plain sum of weight * token loss.

    token_mean:     w_t = 1 / num_loss_tokens                    (all loss tokens of the step)
    sequence_mean:  w_t = 1 / (T_b * num_sequences)              (T_b: loss tokens of t's own sequence)
    constant:       w_t = 1 / (constant_length * num_sequences)  (Dr. GRPO, Liu et al., arXiv 2503.20783, section 3)

    `loss_mask` bool[N], `sequence_starts` int[B+1]; the denominators are those of the whole step over all
    ranks, never of this micro-batch. Returns float32[N], 0 outside the mask; over the step they sum to 1,
    but for `constant`, which gives every token the same weight however long the sequences have become.
    """
    if loss_mask.dim() != 1 or loss_mask.dtype != torch.bool:
        raise ValueError(f"loss_mask must be bool[N], got {loss_mask.dtype}{tuple(loss_mask.shape)}")
    if num_loss_tokens < 1 or num_sequences < 1:
        raise ValueError(f"denominators must be positive, got {num_loss_tokens=}, {num_sequences=}")
    if (denominator == "constant") != (constant_length is not None) or constant_length == 0:
        raise ValueError(f"{constant_length=} does not go with {denominator=}")
    if constant_length is not None:
        return loss_mask.float() / (constant_length * num_sequences)
    if denominator == "token_mean":
        return loss_mask.float() / num_loss_tokens
    index = sequence_index(sequence_starts)
    if index.shape != loss_mask.shape:
        raise ValueError(f"sequence_starts ends at {len(index)}, but loss_mask has {len(loss_mask)} tokens")
    tokens_of_sequence = torch.zeros(len(sequence_starts) - 1, device=loss_mask.device).index_add_(
        0, index, loss_mask.float()
    )
    return loss_mask.float() / (tokens_of_sequence.clamp(min=1.0)[index] * num_sequences)


def weighted_sum(values: Tensor, *, weights: Tensor) -> Tensor:
    """sum_t weights_t * values_t in float32; tokens of weight 0 are ignored even when their value is not finite.

    `values` and `weights` [N]; the denominator is inside the weights.
    """
    if values.shape != weights.shape:
        raise ValueError(f"values {tuple(values.shape)} and weights {tuple(weights.shape)} must have one shape")
    return torch.where(weights != 0, values.float() * weights, torch.zeros_like(weights)).sum()
