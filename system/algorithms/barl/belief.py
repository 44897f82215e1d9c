"""BARL: the belief over candidate answers while a response unfolds, and the credit that it gives each step.

`choose_candidates` is called where a group's answers are known, `reduce_token_logprobs` where the policy was asked,
`compute_belief` where credit is given. Progress, the paper's second baseline, is hypothesis 0 alone.

Here K counts the candidates: hypothesis 0 is the reference answer, 1 .. K are `choose_candidates`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from system.numerics.voting import NO_ANSWER

Float64Array = NDArray[np.float64]
FloatingArray = NDArray[np.floating]
IntegerArray = NDArray[np.integer]
AnswerReduction = Literal["sum", "mean"]

# A log-softmax in float32 may end a little above 0; more than this is another quantity than a log-probability.
_LOGPROB_TOLERANCE = 1e-4  # nats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Belief:
    """Everything between the table of answer probabilities and the value of each step, of one response."""

    rewards: Float64Array  # float64[S, K+1], r_i[t], probability, -1 .. 1
    log_credibility: Float64Array  # float64[S+1, K+1], nats, <= 0, -inf where the answer is impossible
    log_consistency: Float64Array  # float64[S+1, K+1], nats, <= 0; 0 in row 0 and in column 0
    posterior: Float64Array  # float64[S+1, K+1], w_i[t], sums to 1 over i; row S is the belief after the last step
    step_values: Float64Array  # float64[S], -1 .. 2


def choose_candidates(
    class_indices: Sequence[int], *, reference_class: int | None = None, max_candidates: int = 5
) -> list[int]:
    """Completions whose answers become hypotheses 1 .. K of their group, one for each class of equal answers.

    Classes with more completions come first, those of equal size in order of first appearance; at most
    `max_candidates` are taken. The class that equals the reference is left out before counting to `max_candidates`:
    hypothesis 0 is that answer already, and a second copy would get the belief twice. A class is represented by its
    first completion. Sizes are counted here, because `answer_classes` numbers classes by their most frequent text: a
    class with two ways to write one answer may be larger than one with a lower number.

    Args:
        class_indices: G indices, one for each completion; -1 = no answer, which is no candidate.
        reference_class: the class that equals the reference answer; None when no completion's answer does.
        max_candidates: K at most; 0 leaves the reference alone (Progress). The paper has |M| = 5.

    Returns:
        At most `max_candidates` indices of completions, 0 .. G-1, most frequent answer first.

    Raises:
        ValueError: an index is no integer or below -1, `reference_class` or `max_candidates` is negative.

    Source: Zhang et al., Beyond Markovian, arXiv 2505.20561v2 (distinct answers of the policy's own completions).
    """
    for index in class_indices:
        if not isinstance(index, int | np.integer) or index < NO_ANSWER:
            raise ValueError(f"class_indices must be integers >= -1, got {index!r}")
    if reference_class is not None and reference_class < 0:
        raise ValueError(f"reference_class must be None or >= 0, got {reference_class}")
    if max_candidates < 0:
        raise ValueError(f"max_candidates must be >= 0, got {max_candidates}")
    first_completion: dict[int, int] = {}
    for completion, index in enumerate(class_indices):
        first_completion.setdefault(int(index), completion)
    # A Counter keeps the order of first appearance, and most_common sorts stably.
    sizes = Counter(int(index) for index in class_indices if index not in (NO_ANSWER, reference_class))
    return [first_completion[index] for index, _ in sizes.most_common(max_candidates)]


def reduce_token_logprobs(
    token_logprobs: FloatingArray, *, lengths: IntegerArray, reduction: AnswerReduction = "sum"
) -> Float64Array:
    """The table of answer log-probabilities from those of the answers' tokens, in float64.

        sum:   log P[t, i] = sum_{a < n_i} l[t, i, a]            log pi(y_i | s_t + answer prefix)
        mean:  log P[t, i] = (1 / n_i) sum_{a < n_i} l[t, i, a]  of the geometric mean over the n_i answer tokens

    "sum" is the default, because only it is the probability of the answer that the equations speak of. Under it an
    answer that takes more tokens to write is less credible; "mean" takes that out.

    Args:
        token_logprobs: l, float[S+1, K+1, A], nats; A tokens of the longest answer. What lies beyond an answer's
            length is ignored and may be NaN. -inf is allowed; up to 1e-4 above 0 counts as 0.
        lengths: n, int[K+1], 1 .. A.
        reduction: "sum" or "mean".

    Returns:
        float64[S+1, K+1], nats, <= 0.

    Raises:
        ValueError: other shapes or dtypes, a length outside 1 .. A, an unknown reduction, or an answer token whose
            log-probability is NaN, +inf or above 0.
    """
    if token_logprobs.ndim != 3 or not np.issubdtype(token_logprobs.dtype, np.floating):
        raise ValueError(f"token_logprobs must be float[S+1, K+1, A], got {token_logprobs.dtype}{token_logprobs.shape}")
    if lengths.shape != token_logprobs.shape[1:2] or not np.issubdtype(lengths.dtype, np.integer):
        raise ValueError(
            f"lengths must be int[K+1] for token_logprobs {token_logprobs.shape}, got {lengths.dtype}{lengths.shape}"
        )
    max_length = token_logprobs.shape[2]
    if ((lengths < 1) | (lengths > max_length)).any():
        raise ValueError(f"lengths must be within 1 and A = {max_length}, got {lengths.tolist()}")
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    is_answer = np.arange(max_length) < lengths[:, None]
    answer_tokens = np.where(is_answer, token_logprobs, 0.0).astype(np.float64)
    totals = _checked_logprobs(answer_tokens, name="token_logprobs").sum(axis=2)
    return totals / lengths if reduction == "mean" else totals


def compute_belief(answer_logprobs: FloatingArray, *, is_right: bool, beta: float = 1.0) -> Belief:
    """The posterior over hypotheses after every step of one response, and the value of each step under it.

    In float64, with P[t, i] = pi(y_i | s_t + answer prefix) and s_t the prompt with the first t steps:

        r_i[t]           = P[t+1, i] - P[t, i]                                progress under hypothesis i
        log credibility  = log P[t, i]
        log consistency  = -beta sum_{t' < t} |r_i[t'] - r_0[t']|              0 at t = 0, and always for i = 0
        w_i[t]           proportional to exp(log credibility + log consistency), sum_i w_i[t] = 1
        step_values[t]   = outcome + sum_i w_i[t] (P[S, i] - P[t, i])          t = 0 .. S-1

    The outcome is the verdict on the reference answer, outside of the weights and undiscounted: what another hypothesis
    would have paid is paid by nobody. The observed reward is that of hypothesis 0, so a hypothesis that mispredicts it
    loses weight however credible the policy finds it. With K = 0, step_values = outcome + P[S, 0] - P[t, 0]: Progress.

    Weights are normalised in log space, so that probabilities below the smallest float keep their ratios (in rewards
    they count as 0). Where all of a row is -inf, consistency alone decides.

    Args:
        answer_logprobs: log P, float[S+1, K+1], nats; -inf is allowed, up to 1e-4 above 0 counts as 0.
        is_right: whether the verifier finds the response's final answer equal to the reference.
        beta: >= 0; 0 leaves credibility alone. The paper has 1.

    Returns:
        The step values and every intermediate; [0] and [0, K+1] for a response without steps.

    Raises:
        ValueError: other shapes or dtypes, a log-probability that is NaN, +inf or above 0, or `beta` negative or not
            finite.

    Source: Zhang et al., Beyond Markovian, arXiv 2505.20561v2, as the authors' released code computes it: the paper's
    sum_i w_i Q_i with Q_i = sum r_i + verifier, where the verifier's verdict is the same for all i.
    """
    if not 0.0 <= beta < math.inf:
        raise ValueError(f"beta must be finite and >= 0, got {beta}")
    log_credibility = _checked_table(answer_logprobs)
    probabilities = np.exp(log_credibility)
    rewards = np.diff(probabilities, axis=0)
    log_consistency = np.zeros_like(log_credibility)
    log_consistency[1:] -= beta * np.abs(rewards - rewards[:, :1]).cumsum(axis=0)
    posterior = _posterior(log_credibility, log_consistency=log_consistency)
    to_go = probabilities[-1] - probabilities[:-1]
    return Belief(
        rewards=rewards,
        log_credibility=log_credibility,
        log_consistency=log_consistency,
        posterior=posterior,
        step_values=float(is_right) + (posterior[:-1] * to_go).sum(axis=1),
    )


def _posterior(log_credibility: Float64Array, *, log_consistency: Float64Array) -> Float64Array:
    """w_i[t], [S+1, K+1]; see `compute_belief`."""
    log_weights = log_credibility + log_consistency
    is_impossible = np.isneginf(log_weights).all(axis=1, keepdims=True)
    log_weights = np.where(is_impossible, log_consistency, log_weights)
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    normalised: Float64Array = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def _checked_table(answer_logprobs: FloatingArray) -> Float64Array:
    if answer_logprobs.ndim != 2 or 0 in answer_logprobs.shape:
        raise ValueError(f"answer_logprobs must be [S+1, K+1] with S, K >= 0, got {answer_logprobs.shape}")
    if not np.issubdtype(answer_logprobs.dtype, np.floating):
        raise ValueError(f"answer_logprobs must be floating point, got {answer_logprobs.dtype}")
    return _checked_logprobs(answer_logprobs.astype(np.float64), name="answer_logprobs")


def _checked_logprobs(logprobs: Float64Array, *, name: str) -> Float64Array:
    """The log-probabilities, what rounding left above 0 set to 0."""
    if np.isnan(logprobs).any() or np.isposinf(logprobs).any():
        raise ValueError(f"{name} must be finite or -inf, got NaN or +inf in {logprobs.tolist()}")
    if (logprobs > _LOGPROB_TOLERANCE).any():
        raise ValueError(f"{name} must be log-probabilities, <= 0, got {logprobs.max()}")
    return np.minimum(logprobs, 0.0)
