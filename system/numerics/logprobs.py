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

from system.errors import NotFiniteError

# Logits held at a time. On a CPU they should stay in the cache (8 MiB); a GPU wants few, large kernels (64 MiB).
LOGITS_PER_CHUNK_CPU = 1 << 21
LOGITS_PER_CHUNK_GPU = 1 << 24
TOKENS_PER_CHUNK = 1024  # each chunk of tokens reads the whole weight: fewer would wait for memory

# Where exp underflows, a CPU takes ten times as long. 1e6 columns at e^-60 are together 1e-20 of the largest.
SMALLEST_EXPONENT = -60.0


class TokenStatistics(NamedTuple):
    """float32 [M] each."""

    logprobs: Tensor  # nats, of the target token, among all V columns
    entropy: Tensor  # nats, in [0, log V], over all V columns
    self_certainty: Tensor  # nats, >= 0, over the real tokens; carries no gradient


class _Chunks(NamedTuple):
    """How the logits are cut and scaled; static for one call."""

    num_real_tokens: int
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
    predicts. Logits are accumulated in float32 and never rounded to a narrower dtype, and so is all that follows;
    gradients of `logprobs` and `entropy` reach `hidden` and `weight`, accumulated in float32.
    `num_real_tokens`: only the first so many rows of `weight` are tokens, the rest is padding of the matrix; None:
    all rows. Self-certainty leaves the padding out: p is renormalised over the real tokens and V counts them alone
    (`mask_padded_vocab`). Log-probability and entropy are always over all columns, because the engine samples from
    that softmax; a padding column may even be a target.
    The chunk sizes bound memory and do not change the result beyond rounding; None: chosen by size and device.

    Never waits for the device: NaN or infinite logits, and a target outside 0 .. V-1, show as values that
    `require_finite` refuses.
    Raises ValueError for shapes that do not fit, a temperature <= 0, or num_real_tokens out of range.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden [M, d] and weight [V, d] do not fit: {tuple(hidden.shape)}, {tuple(weight.shape)}")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden and weight must have one dtype, got {hidden.dtype} and {weight.dtype}")
    if target_ids.shape != hidden.shape[:1]:
        raise ValueError(f"target_ids must be [{len(hidden)}], got {tuple(target_ids.shape)}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be > 0 and finite, got {temperature}")
    num_columns = len(weight)
    num_real_tokens = num_columns if num_real_tokens is None else num_real_tokens
    if not 0 < num_real_tokens <= num_columns:
        raise ValueError(f"num_real_tokens must be in 1 .. {num_columns}, got {num_real_tokens}")
    num_logits = LOGITS_PER_CHUNK_CPU if hidden.device.type == "cpu" else LOGITS_PER_CHUNK_GPU
    rows = max(1, min(len(hidden), tokens_per_chunk or max(TOKENS_PER_CHUNK, num_logits // num_columns)))
    # The second bound is for few tokens: a chunk of the weight, which may have to be widened, stays small too.
    # Odd numbers of columns cost the CPU's matrix product a third of its speed.
    columns = columns_per_chunk or max(64, min(num_logits // rows, 4 * num_logits // hidden.shape[1]) // 64 * 64)
    chunks = _Chunks(
        num_real_tokens=num_real_tokens,
        inverse_temperature=1.0 / temperature,
        tokens_per_chunk=rows,
        columns_per_chunk=min(num_columns, columns),
    )
    return TokenStatistics(*_TokenStatistics.apply(hidden, weight, target_ids.long(), chunks))


def require_finite(statistics: TokenStatistics, *, what: str) -> None:
    """Refuses NaN and infinity; one reduction, and on a GPU one wait for it.

    `what` names the source in the message, for example "scorer, policy version 7".
    Raises NotFiniteError, which says how many positions are not finite, which is the first, and what to look at.
    """
    # Not finite as soon as one of the three is not.
    total = statistics.logprobs.detach() + statistics.entropy.detach() + statistics.self_certainty.detach()
    if total.sum().isfinite():
        return
    bad_positions = (~total.isfinite()).nonzero()[:, 0]
    if len(bad_positions) == 0:  # only their sum was too large
        return
    first = int(bad_positions[0])
    values = ", ".join(f"{name} {float(value[first]):g}" for name, value in statistics._asdict().items())
    raise NotFiniteError(
        f"{what}: {len(bad_positions)} of {len(total)} positions are not finite, the first is {first} ({values}). "
        "Either the hidden states or the LM head hold NaN or infinity (training diverged: lower the learning rate "
        "and go back to an earlier checkpoint; or float16 overflowed: use bfloat16 or float32), or a target id lies "
        "outside the vocabulary (the tokenizer does not belong to the model)."
    )


class _TokenStatistics(torch.autograd.Function):
    """Backward recomputes each chunk of logits from hidden, weight and the saved logsumexp."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target_ids: Tensor, chunks: _Chunks
    ) -> tuple[Tensor, Tensor, Tensor]:
        logsumexp = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        logprobs, entropy, self_certainty = (torch.empty_like(logsumexp) for _ in range(3))
        num_real, size = chunks.num_real_tokens, chunks.columns_per_chunk
        workspace = _Workspace(chunks, device=hidden.device)
        for rows in _slices(0, len(hidden), chunks.tokens_per_chunk):
            head = _Logits(hidden[rows], weight=weight, chunks=chunks, workspace=workspace)
            reduction = _Reduction(target_ids[rows], workspace=workspace)
            for columns in _slices(0, num_real, size):
                reduction.add(head.chunk(columns), first_column=columns.start)
            # The padding columns come last, so that the sums over the real tokens can be read off on the way.
            self_certainty[rows] = reduction.self_certainty()
            for columns in _slices(num_real, len(weight), size):
                reduction.add(head.chunk(columns), first_column=columns.start)
            logsumexp[rows] = reduction.logsumexp()
            logprobs[rows] = reduction.target_logprobs()
            entropy[rows] = reduction.entropy()
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
        workspace = _Workspace(chunks, device=hidden.device)
        for rows in _slices(0, len(hidden), chunks.tokens_per_chunk):
            head = _Logits(hidden[rows], weight=weight, chunks=chunks, workspace=workspace)
            for columns in _slices(0, len(weight), chunks.columns_per_chunk):
                log_p = head.chunk(columns).sub_(logsumexp[rows, None])
                grad = _logit_gradient(
                    log_p,
                    p=workspace.scratch(log_p),
                    target_columns=target_ids[rows] - columns.start,
                    grad_logprobs=_scaled(grad_logprobs, rows, chunks),
                    grad_entropy=_scaled(grad_entropy, rows, chunks),
                    entropy=entropy[rows],
                ).to(hidden.dtype)
                if grad_hidden is not None:
                    _add_product(grad_hidden[rows], grad, weight[columns])
                if grad_weight is not None:
                    _add_product(grad_weight[columns], grad.T, hidden[rows])
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            None,
        )


class _Workspace:
    """Two chunks of float32, written over and over: a fresh one for each chunk would cost its page faults."""

    def __init__(self, chunks: _Chunks, *, device: torch.device) -> None:
        num_logits = chunks.tokens_per_chunk * chunks.columns_per_chunk
        self._logits, self._scratch = (torch.empty(num_logits, device=device, dtype=torch.float32) for _ in range(2))

    def logits(self, num_rows: int, num_columns: int) -> Tensor:
        return self._logits[: num_rows * num_columns].view(num_rows, num_columns)

    def scratch(self, like: Tensor) -> Tensor:
        return self._scratch[: like.numel()].view_as(like)


class _Logits:
    """Chunks of z for some rows of hidden states."""

    def __init__(self, hidden: Tensor, *, weight: Tensor, chunks: _Chunks, workspace: _Workspace) -> None:
        # CUDA multiplies narrow dtypes into a float32 result. Elsewhere they are widened first: a logit of 20
        # rounded to bfloat16 is off by up to 0.06.
        self._widens = not (hidden.is_cuda and hidden.dtype in (torch.bfloat16, torch.float16))
        self._hidden = hidden.float() if self._widens else hidden
        self._weight = weight
        self._inverse_temperature = chunks.inverse_temperature
        self._workspace = workspace

    def chunk(self, columns: slice) -> Tensor:
        """float32 [rows, columns], valid until the next chunk is asked for."""
        weight = self._weight[columns]
        if self._widens:
            out = self._workspace.logits(len(self._hidden), len(weight))
            z = torch.mm(self._hidden, weight.float().T, out=out)
        else:
            z = torch.mm(self._hidden, weight.T, out_dtype=torch.float32)
        return z if self._inverse_temperature == 1.0 else z.mul_(self._inverse_temperature)


class _Reduction:
    """Running sums over the columns of some rows, float32 [rows] each (online softmax).

    They are relative to the running maximum and moved along when it rises, so that exp does not overflow and no
    result is the difference of two large numbers because all logits lie far from 0.
    """

    def __init__(self, target_ids: Tensor, *, workspace: _Workspace) -> None:
        zeros = torch.zeros(len(target_ids), device=target_ids.device)
        self._target_ids = target_ids
        self._workspace = workspace
        self._maximum: Tensor | None = None
        self._num_columns = 0
        self._sum_exp = zeros  # sum_j exp(z_j - maximum)
        self._sum_exp_shifted = zeros  # sum_j exp(z_j - maximum) (z_j - maximum)
        self._sum_shifted = zeros  # sum_j (z_j - maximum)
        self._target = torch.full_like(zeros, math.nan)  # stays NaN for an id outside the vocabulary

    def add(self, z: Tensor, *, first_column: int) -> None:
        """Takes in a chunk z [rows, columns] and overwrites it."""
        target_columns = self._target_ids - first_column
        inside = (target_columns >= 0) & (target_columns < z.shape[1])
        picked = z.gather(1, target_columns.clamp(0, z.shape[1] - 1)[:, None])[:, 0]
        self._target = torch.where(inside, picked, self._target)
        maximum = z.amax(dim=-1)
        if self._maximum is not None:
            maximum = torch.maximum(maximum, self._maximum)
            rise = self._maximum - maximum
            rescale = rise.exp()
            self._sum_exp_shifted = rescale * (self._sum_exp_shifted + rise * self._sum_exp)
            self._sum_exp = rescale * self._sum_exp
            self._sum_shifted = self._sum_shifted + self._num_columns * rise
        self._maximum = maximum
        self._num_columns += z.shape[1]
        z.sub_(maximum[:, None])
        self._sum_shifted = self._sum_shifted + z.sum(dim=-1)
        exp_z = _exp(z, out=self._workspace.scratch(z))
        self._sum_exp = self._sum_exp + exp_z.sum(dim=-1)
        self._sum_exp_shifted = self._sum_exp_shifted + torch.linalg.vecdot(exp_z, z)

    def logsumexp(self) -> Tensor:
        assert self._maximum is not None
        return self._maximum + self._sum_exp.log()

    def target_logprobs(self) -> Tensor:
        assert self._maximum is not None
        return (self._target - self._maximum) - self._sum_exp.log()

    def self_certainty(self) -> Tensor:
        divergence = self._sum_exp.log() - self._sum_shifted / self._num_columns - math.log(self._num_columns)
        return divergence.clamp_min_(0.0)  # of a uniform p, rounding could leave a little below 0

    def entropy(self) -> Tensor:
        return self._sum_exp.log() - self._sum_exp_shifted / self._sum_exp


def _exp(exponent: Tensor, *, out: Tensor) -> Tensor:
    """exp of numbers <= 0. What lies below e^SMALLEST_EXPONENT is given as that, which no float32 sum sees."""
    return torch.clamp(exponent, min=SMALLEST_EXPONENT, out=out).exp_()


def _scaled(grad: Tensor | None, rows: slice, chunks: _Chunks) -> Tensor | None:
    """The gradient of some rows with the factor dz / d(hidden @ weight^T)."""
    return None if grad is None else grad[rows] * chunks.inverse_temperature


def _logit_gradient(
    log_p: Tensor,
    *,
    p: Tensor,
    target_columns: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    entropy: Tensor,
) -> Tensor:
    """d(loss)/dz of one chunk: g_logp (1[j = y] - p_j) - g_H p_j (log p_j + H), float32 [rows, columns].

    Overwrites `log_p`, and `p` with the result.
    """
    _exp(log_p, out=p)
    if grad_entropy is None:
        factor = torch.zeros_like(entropy)[:, None]
    else:
        factor = log_p.add_(entropy[:, None]).mul_(grad_entropy[:, None])
    if grad_logprobs is not None:
        factor = factor.add_(grad_logprobs[:, None])
    grad = p.mul_(factor).neg_()
    if grad_logprobs is not None:
        inside = (target_columns >= 0) & (target_columns < p.shape[1])
        grad.scatter_add_(1, target_columns.clamp(0, p.shape[1] - 1)[:, None], (grad_logprobs * inside)[:, None])
    return grad


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, where total is float32."""
    if left.dtype == torch.float32:
        total.addmm_(left, right)
    else:
        total += left @ right


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]
