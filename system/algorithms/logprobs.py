"""Log-probability, entropy and self-certainty of tokens straight from hidden states and the LM head's weight.

One pass over the vocabulary yields all three; the logits exist only as one chunk of tokens by one chunk of
vocabulary, in forward and in backward, so that `[T, V]` is never whole in memory. Called by the learner's head
(with gradient) and by scorers (without).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TOKENS_PER_CHUNK = 8192
LOGITS_PER_CHUNK = 1 << 24  # 64 MiB of float32 logits at a time


class TokenStatistics(NamedTuple):
    """float32 [M] each."""

    logprobs: Tensor  # nats, of the target token
    entropy: Tensor  # nats, in [0, log V]
    self_certainty: Tensor  # nats, >= 0; carries no gradient


class _Chunks(NamedTuple):
    """How the logits are cut and scaled; static for one call."""

    num_columns: int
    inverse_temperature: float
    tokens_per_chunk: int
    columns_per_chunk: int


def token_statistics(
    hidden: Tensor,
    *,
    weight: Tensor,
    target_ids: Tensor,
    temperature: float = 1.0,
    num_real_tokens: int | None = None,
    columns_per_chunk: int | None = None,
    tokens_per_chunk: int | None = None,
) -> TokenStatistics:
    """Statistics of softmax(z), z = hidden @ weight^T / temperature, at each of M positions.

    logprobs       = z_y - logsumexp(z)
    entropy        = logsumexp(z) - sum_j p_j z_j
    self_certainty = KL(U || p) = logsumexp(z) - mean_j(z_j) - log V   (Kang et al., arXiv 2502.18581)

    `hidden` [M, d] and `weight` [V, d] of one floating dtype, `target_ids` int64[M]: the token that position m
    predicts. Logits are multiplied in the given dtype and cast to float32 before exp, log and sums; gradients
    of `logprobs` and `entropy` reach `hidden` and `weight`, accumulated in float32.
    `num_real_tokens`: only the first so many rows of `weight` are tokens, the rest is padding of the matrix
    and is left out (`mask_padded_vocab`); None: all rows.
    The chunk sizes bound memory and do not change the result beyond rounding; None: chosen by size.

    Raises ValueError for shapes that do not fit, a temperature <= 0, or num_real_tokens out of range.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden [M, d] and weight [V, d] do not fit: {tuple(hidden.shape)}, {tuple(weight.shape)}")
    if target_ids.shape != hidden.shape[:1]:
        raise ValueError(f"target_ids must be [{len(hidden)}], got {tuple(target_ids.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    num_columns = len(weight) if num_real_tokens is None else num_real_tokens
    if not 0 < num_columns <= len(weight):
        raise ValueError(f"num_real_tokens must be in 1 .. {len(weight)}, got {num_columns}")
    rows = max(1, min(tokens_per_chunk or TOKENS_PER_CHUNK, len(hidden)))
    chunks = _Chunks(
        num_columns=num_columns,
        inverse_temperature=1.0 / temperature,
        tokens_per_chunk=rows,
        columns_per_chunk=min(num_columns, columns_per_chunk or max(1, LOGITS_PER_CHUNK // rows)),
    )
    return TokenStatistics(*_TokenStatistics.apply(hidden, weight, target_ids.long(), chunks))


class _TokenStatistics(torch.autograd.Function):
    """Backward recomputes each chunk of logits from hidden, weight and the saved logsumexp."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target_ids: Tensor, chunks: _Chunks
    ) -> tuple[Tensor, Tensor, Tensor]:
        logsumexp = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        logprobs, entropy, self_certainty = (torch.empty_like(logsumexp) for _ in range(3))
        for rows in _slices(len(hidden), chunks.tokens_per_chunk):
            log_normaliser, expected, mean, target = _reduce_rows(hidden[rows], weight, target_ids[rows], chunks)
            logsumexp[rows] = log_normaliser
            logprobs[rows] = target - log_normaliser
            entropy[rows] = log_normaliser - expected
            self_certainty[rows] = log_normaliser - mean - math.log(chunks.num_columns)
        ctx.save_for_backward(hidden, weight, target_ids, logsumexp, entropy)
        ctx.chunks = chunks
        ctx.mark_non_differentiable(self_certainty)
        ctx.set_materialize_grads(False)
        return logprobs, entropy, self_certainty

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, _: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, target_ids, logsumexp, entropy = ctx.saved_tensors
        chunks: _Chunks = ctx.chunks
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for rows in _slices(len(hidden), chunks.tokens_per_chunk):
            for columns in _slices(chunks.num_columns, chunks.columns_per_chunk):
                log_p = _logits(hidden[rows], weight[columns], chunks).sub_(logsumexp[rows, None])
                grad = _logit_gradient(
                    log_p,
                    target_columns=target_ids[rows] - columns.start,
                    grad_logprobs=None if grad_logprobs is None else grad_logprobs[rows],
                    grad_entropy=None if grad_entropy is None else grad_entropy[rows],
                    entropy=entropy[rows],
                )
                grad = (grad * chunks.inverse_temperature).to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] += grad @ weight[columns]
                if grad_weight is not None:
                    grad_weight[columns] += grad.T @ hidden[rows]
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            None,
        )


def _logits(hidden: Tensor, weight: Tensor, chunks: _Chunks) -> Tensor:
    """float32 [rows, columns], a fresh tensor."""
    return (hidden @ weight.T).float().mul_(chunks.inverse_temperature)


def _reduce_rows(
    hidden: Tensor, weight: Tensor, target_ids: Tensor, chunks: _Chunks
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logsumexp(z), sum_j p_j z_j, mean_j z_j, z_y) of some rows by one pass over the columns, float32 [rows].

    The running sums are relative to the running maximum and rescaled when it rises (online softmax).
    """
    shape, device = (len(hidden),), hidden.device
    maximum = torch.full(shape, -math.inf, device=device)
    sum_exp, sum_exp_z, sum_z, target = (torch.zeros(shape, device=device) for _ in range(4))
    for columns in _slices(chunks.num_columns, chunks.columns_per_chunk):
        z = _logits(hidden, weight[columns], chunks)
        new_maximum = torch.maximum(maximum, z.amax(dim=-1))
        rescale = (maximum - new_maximum).exp()
        exp_z = (z - new_maximum[:, None]).exp_()
        sum_exp = sum_exp * rescale + exp_z.sum(dim=-1)
        sum_exp_z = sum_exp_z * rescale + torch.linalg.vecdot(exp_z, z)
        sum_z += z.sum(dim=-1)
        inside = (target_ids >= columns.start) & (target_ids < columns.stop)
        picked = z.gather(1, (target_ids - columns.start).clamp(0, z.shape[1] - 1)[:, None])[:, 0]
        target = torch.where(inside, picked, target)
        maximum = new_maximum
    return maximum + sum_exp.log(), sum_exp_z / sum_exp, sum_z / chunks.num_columns, target


def _logit_gradient(
    log_p: Tensor,
    *,
    target_columns: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    entropy: Tensor,
) -> Tensor:
    """d(loss)/dz of one chunk: g_logp (1[j = y] - p_j) - g_H p_j (log p_j + H), float32 [rows, columns]."""
    p = log_p.exp()
    grad = torch.zeros_like(p)
    if grad_logprobs is not None:
        grad.addcmul_(p, grad_logprobs[:, None], value=-1.0)
        inside = (target_columns >= 0) & (target_columns < p.shape[1])
        grad.scatter_add_(1, target_columns.clamp(0, p.shape[1] - 1)[:, None], (grad_logprobs * inside)[:, None])
    if grad_entropy is not None:
        grad.addcmul_(p * (log_p + entropy[:, None]), grad_entropy[:, None], value=-1.0)
    return grad


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
