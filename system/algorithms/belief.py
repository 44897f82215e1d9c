"""BARL: the belief over candidate answers while a response unfolds, and the credit that it gives each step.

The belief scorer calls, in this order: `choose_candidates` for a group, `reduce_token_logprobs` and `compute_belief`
for each response, `step_advantages` for the group, `spread_to_tokens` for each response. Progress, the paper's second
baseline, is `compute_belief` with hypothesis 0 alone.

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
from system.records import BoolArray, FloatArray

Float64Array = NDArray[np.float64]
FloatingArray = NDArray[np.floating]
IntegerArray = NDArray[np.integer]
AnswerReduction = Literal["sum", "mean"]

# A log-softmax in float32 may end a little above 0; more than this is another quantity than a log-probability.
_LOGPROB_TOLERANCE = 1e-4  # nats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Belief:
    """Everything between the table of answer probabilities and the value of each step, of one response.

    An outcome pays under its own hypothesis, and each step is valued by the belief before it. So a response that ends
    on a wrong answer which the policy believed in has step values near 1, and one that turns from it to the reference
    only in its last step has values near those of the wrong hypothesis, below 0. A `reference_weight` above 0 values
    the reference beside the belief, as the recipe of the synthetic task does with 1 / |M|.
    """

    rewards: Float64Array  # float64[S, K+1], r_i[t], probability, -1 .. 1
    values: Float64Array  # float64[S, K+1], Q_i[t], -1 .. 2
    log_credibility: Float64Array  # float64[S+1, K+1], nats, <= 0, -inf where the answer is impossible
    log_consistency: Float64Array  # float64[S+1, K+1], nats, <= 0; 0 in row 0 and in column 0
    posterior: Float64Array  # float64[S+1, K+1], w_i[t], 0 .. 1; row S is the belief after the last step
    step_values: Float64Array  # float64[S], -1 .. 2, or up to (K+1) times that where weights are not normalised


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


def compute_belief(
    answer_logprobs: FloatingArray,
    *,
    outcomes: NDArray[np.generic],
    beta: float = 1.0,
    normalise_weights: bool = True,
    reference_weight: float = 0.0,
) -> Belief:
    """The posterior over hypotheses after every step of one response, and the value of each step under it.

    In float64, with P[t, i] = pi(y_i | s_t + answer prefix) and s_t the prompt with the first t steps:

        r_i[t]           = P[t+1, i] - P[t, i]                                progress under hypothesis i
        Q_i[t]           = sum_{t' >= t} r_i[t'] + outcome_i = P[S, i] - P[t, i] + outcome_i
        log credibility  = log P[t, i]
        log consistency  = -beta sum_{t' < t} |r_0[t'] - r_i[t']|              0 at t = 0, and always for i = 0
        w_i[t]           proportional to exp(log credibility + log consistency)
        step_values[t]   = reference_weight Q_0[t] + sum_i w_i[t] Q_i[t]       t = 0 .. S-1

    The observed reward is that of hypothesis 0, so a hypothesis that mispredicts it loses weight however credible
    the policy finds it. With K = 0 and normalised weights, step_values = Q_0: Progress.

    Weights are normalised over i by default, sum_i w_i[t] = 1, in log space, so that probabilities below the smallest
    float keep their ratios (in rewards they count as 0). Without, step values shrink with the probability of the
    answers: a long one gives next to no credit. Where all of a row is -inf, consistency alone decides.

    Args:
        answer_logprobs: log P, float[S+1, K+1], nats; -inf is allowed, up to 1e-4 above 0 counts as 0.
        outcomes: int, bool or float [K+1], 1 where the response's final answer equals y_i, else 0; outcome_0 is the
            verifier's verdict.
        beta: >= 0; 0 leaves credibility alone. The paper has 1.
        normalise_weights: whether sum_i w_i[t] = 1.
        reference_weight: >= 0; adds what is known beside the belief, that hypothesis 0 is the truth (see Belief).

    Returns:
        The step values and every intermediate; [0] and [0, K+1] for a response without steps.

    Raises:
        ValueError: other shapes or dtypes, a log-probability that is NaN, +inf or above 0, an outcome other than 0
            and 1, or `beta` or `reference_weight` negative or not finite.

    Source: Zhang et al., Beyond Markovian, arXiv 2505.20561v2.
    """
    _check_factors(beta=beta, reference_weight=reference_weight)
    log_credibility = _checked_table(answer_logprobs)
    outcomes_64 = _checked_outcomes(outcomes, num_hypotheses=log_credibility.shape[1])
    probabilities = np.exp(log_credibility)
    rewards = np.diff(probabilities, axis=0)
    values = probabilities[-1] - probabilities[:-1] + outcomes_64
    log_consistency = np.zeros_like(log_credibility)
    log_consistency[1:] -= beta * np.abs(rewards[:, :1] - rewards).cumsum(axis=0)
    posterior = _posterior(log_credibility, log_consistency=log_consistency, normalise_weights=normalise_weights)
    return Belief(
        rewards=rewards,
        values=values,
        log_credibility=log_credibility,
        log_consistency=log_consistency,
        posterior=posterior,
        step_values=reference_weight * values[:, 0] + (posterior[:-1] * values).sum(axis=1),
    )


def step_advantages(
    step_values: Sequence[FloatingArray], *, valid: BoolArray, subtract_group_mean: bool = True
) -> list[Float64Array]:
    """Advantage of each step: its value, less what the group's responses are worth at the same relative step.

    Step t of S covers the relative positions t/S up to (t+1)/S, and its value holds all along it. In float64:

        A_i[t] = v_i[t] - (1/n) sum_j v_j[floor(t S_j / S_i)]

    over the n valid members j with at least one step, the response itself among them, as in the mean baseline of
    `group_advantages`. Relative steps, not tokens: a long step counts once. With one such member A is 0.

    On by default: what all responses to a prompt get at a position says nothing about which of their steps was better,
    yet would push all of them up or down. The recipe of the synthetic task has it on.

    Args:
        step_values: G arrays float[S_i]; those of invalid members are ignored and may be NaN.
        valid: bool[G]. An invalid member (no verdict, a scoring that failed) gets 0 and counts nowhere.
        subtract_group_mean: off gives the values of valid members as they are.

    Returns:
        G arrays float64[S_i].

    Raises:
        ValueError: other shapes or dtypes, or a value of a valid member that is not finite.
    """
    if valid.shape != (len(step_values),) or valid.dtype != np.bool_:
        raise ValueError(f"valid must be bool[G], G = {len(step_values)}, got {valid.dtype}{valid.shape}")
    for index, values in enumerate(step_values):
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"step_values[{index}] must be float[S], got {values.dtype}{values.shape}")
        if valid[index] and not np.isfinite(values).all():
            raise ValueError(f"step_values[{index}] of a valid member must be finite, got {values.tolist()}")
    advantages = [
        values.astype(np.float64) if is_valid else np.zeros(len(values))
        for values, is_valid in zip(step_values, valid, strict=True)
    ]
    if not subtract_group_mean:
        return advantages
    members = [values.astype(np.float64) for values, is_valid in zip(step_values, valid, strict=True) if is_valid]
    members = [values for values in members if len(values)]
    for own, is_valid in zip(advantages, valid, strict=True):
        num_steps = len(own)
        if is_valid and num_steps:
            # In integers: 1/49 * 49 is below 1 in floats, which would look up the step before.
            lookups = [values[np.arange(num_steps) * len(values) // num_steps] for values in members]
            own -= np.mean(lookups, axis=0)
    return advantages


def spread_to_tokens(step_values: FloatingArray, *, step_ends: IntegerArray, num_tokens: int) -> FloatArray:
    """The value of its step at every token: token k gets step_values[t] for step_ends[t-1] <= k < step_ends[t].

    Args:
        step_values: values or advantages, float[S].
        step_ends: int[S], offset behind the last token of each step; ascending from at least 1, the last is T.
        num_tokens: T; 0 for a response without steps.

    Returns:
        float32[T], in the unit of `step_values`.

    Raises:
        ValueError: other shapes or dtypes, a step without tokens, or tokens outside of all steps.
    """
    if step_values.ndim != 1 or not np.issubdtype(step_values.dtype, np.floating):
        raise ValueError(f"step_values must be float[S], got {step_values.dtype}{step_values.shape}")
    if step_ends.shape != step_values.shape or not np.issubdtype(step_ends.dtype, np.integer):
        raise ValueError(
            f"step_ends must be int[S] for step_values {step_values.shape}, got {step_ends.dtype}{step_ends.shape}"
        )
    step_lengths = np.diff(step_ends.astype(np.int64), prepend=0)
    if (step_lengths < 1).any():
        raise ValueError(f"step_ends must ascend, each step with at least one token, got {step_ends.tolist()}")
    if step_lengths.sum() != num_tokens:
        raise ValueError(f"step_ends must end at num_tokens = {num_tokens}, got {step_ends.tolist()}")
    return np.repeat(step_values.astype(np.float32), step_lengths)


def _posterior(
    log_credibility: Float64Array, *, log_consistency: Float64Array, normalise_weights: bool
) -> Float64Array:
    """w_i[t], [S+1, K+1]; see `compute_belief`."""
    log_weights = log_credibility + log_consistency
    if not normalise_weights:
        return np.exp(log_weights)
    is_impossible = np.isneginf(log_weights).all(axis=1, keepdims=True)
    log_weights = np.where(is_impossible, log_consistency, log_weights)
    weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _check_factors(**factors: float) -> None:
    for name, factor in factors.items():
        if not 0.0 <= factor < math.inf:
            raise ValueError(f"{name} must be finite and >= 0, got {factor}")


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


def _checked_outcomes(outcomes: NDArray[np.generic], *, num_hypotheses: int) -> Float64Array:
    if outcomes.shape != (num_hypotheses,):
        raise ValueError(f"outcomes must be [K+1] for answer_logprobs [S+1, {num_hypotheses}], got {outcomes.shape}")
    if not np.isin(outcomes, (0, 1)).all():
        raise ValueError(f"outcomes must be 0 or 1, got {outcomes.tolist()}")
    return outcomes.astype(np.float64)
