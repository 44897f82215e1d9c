"""Best-of-N selection: which of N completions of a problem to hand out, and how often that one is right.

A selector gives every completion the probability of being chosen, so that ties cost no luck: what is tied is equally
likely. Its accuracy is the probability of a right one; whoever needs one completion takes `np.argmax`, the first of
the most likely. Called by `credence select`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from system.numerics.pass_at_k import MeanWithInterval, mean_with_interval

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

NO_ANSWER = -1  # class id of a completion that states no answer, or whose answer belongs to no class
MAJORITY = "majority"

# Votes are sums of the same powers in another order; a real difference is many times larger.
_RELATIVE_TOLERANCE = 1e-9
_MAX_PAIRS = 2**22  # compared at once: 32 MiB for each array of pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionAccuracy:
    selector: str  # "highest_certainty", "borda_p<power>", "majority" or "random"
    num_completions: int
    accuracy: MeanWithInterval  # over problems
    gain_over_majority: MeanWithInterval  # over problems, of the difference to "majority" on the same completions


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionTable:
    num_problems: int
    num_subsets: int  # for each problem and N below all completions
    rows: tuple[SelectionAccuracy, ...]  # by selector, then by num_completions

    def row(self, selector: str, *, num_completions: int) -> SelectionAccuracy:
        """KeyError when the table has no such row."""
        for row in self.rows:
            if (row.selector, row.num_completions) == (selector, num_completions):
                return row
        raise KeyError(f"no row for {selector!r} at N = {num_completions}")


def highest_certainty_choice(certainty: ArrayLike, *, class_ids: ArrayLike) -> Float64Array:
    """Probability [..., N] of each completion when the most certain one is taken.

    Only completions with an answer (class id >= 0) can be taken, unless there is none: then all are equally likely,
    and all are wrong. `certainty` float[..., N], finite where there is an answer; `class_ids` int[..., N]. Raises
    ValueError for other shapes and values. Source: Kang et al., arXiv 2502.18581.
    """
    scores, classes = _checked(certainty, class_ids=class_ids)
    eligible = _eligible(classes)
    scores = np.where(eligible, np.where(classes == NO_ANSWER, 0.0, scores), -np.inf)
    return _normalised(scores == scores.max(axis=-1, keepdims=True))


def borda_choice(certainty: ArrayLike, *, class_ids: ArrayLike, power: float) -> Float64Array:
    """Probability [..., N] of each completion under Borda voting by certainty.

        votes(class) = sum over its members of (N - rank + 1)^power,   rank 1 = most certain

    N and the ranks count completions with an answer only; tied certainties share their mean rank. The class with the
    most votes wins, tied classes are equally likely, and so are the members of a class. Without any answer all
    completions are equally likely. `power` 0 is majority voting; large powers approach `highest_certainty_choice`.
    Arguments and errors otherwise as there; ValueError also for a negative power or one that overflows. Source: Kang
    et al., arXiv 2502.18581.
    """
    scores, classes = _checked(certainty, class_ids=class_ids)
    if not 0.0 <= power <= 100.0:
        raise ValueError(f"power must be within 0 and 100, got {power}")
    answered = classes != NO_ANSWER
    scores = np.where(answered, scores, -np.inf)
    # (N - rank + 1) = those below + half of those tied (itself included) + 1/2
    below = (scores[..., :, None] > scores[..., None, :]) & answered[..., None, :]
    tied = (scores[..., :, None] == scores[..., None, :]) & answered[..., None, :]
    places = below.sum(axis=-1) + 0.5 * tied.sum(axis=-1) + 0.5
    ballots = np.where(answered, places**power, 0.0)
    is_same_class = (classes[..., :, None] == classes[..., None, :]) & answered[..., None, :]
    votes = (is_same_class * ballots[..., None, :]).sum(axis=-1)
    most_votes = votes.max(axis=-1, keepdims=True)
    is_winner = _eligible(classes) & (votes >= most_votes * (1.0 - _RELATIVE_TOLERANCE))
    class_sizes = np.maximum(is_same_class.sum(axis=-1), 1)
    return _normalised(is_winner / class_sizes)


def majority_choice(class_ids: ArrayLike) -> Float64Array:
    """Probability [..., N] of each completion under majority voting; ties as in `borda_choice`."""
    classes = np.asarray(class_ids)
    return borda_choice(np.zeros(classes.shape), class_ids=classes, power=0.0)


def random_choice(class_ids: ArrayLike) -> Float64Array:
    """Probability [..., N] of each completion when one is drawn blindly, those without an answer included."""
    return _normalised(np.ones(np.asarray(class_ids).shape))


def accuracy_against_n(
    certainty: ArrayLike,
    *,
    class_ids: ArrayLike,
    right: ArrayLike,
    borda_powers: Sequence[float] = (0.3, 0.7, 1.2),
    num_subsets: int = 8,
    seed: int = 0,
) -> SelectionTable:
    """Accuracy of every selector at N = 1, 2, 4, ... and all N_max completions of each problem.

    At each N a problem's accuracy is the mean over `num_subsets` subsets of its completions, the same ones for every
    selector: windows of length N, evenly spaced on one random circular order of the completions. Such a window is a
    uniformly random subset; together they cover the completions evenly, which takes out most of the luck of drawing.
    Means and 95 % intervals are over problems.

    Args:
        certainty: float[P, N_max], finite where there is an answer.
        class_ids: int[P, N_max], -1 = no answer; equal answers of a problem have the same id.
        right: bool[P, N_max].
        borda_powers: p of the Borda votes; different numbers.
        seed: of the subsets.

    Raises:
        ValueError: other shapes or values, no problem, no completion, fewer than one subset, repeated powers.
    """
    scores, classes = _checked(certainty, class_ids=class_ids)
    is_right = np.asarray(right, dtype=np.bool_)
    if scores.ndim != 2 or scores.size == 0 or is_right.shape != scores.shape:
        raise ValueError(f"certainty and right must be [P, N_max] alike, got {scores.shape} and {is_right.shape}")
    if num_subsets < 1 or len(set(borda_powers)) != len(borda_powers):
        raise ValueError(f"num_subsets must be >= 1 and powers differ, got {num_subsets} and {tuple(borda_powers)}")
    selectors = _selectors(borda_powers)
    order = np.random.default_rng(seed).permuted(np.broadcast_to(np.arange(scores.shape[1]), scores.shape), axis=1)
    accuracies: dict[str, dict[int, Float64Array]] = {name: {} for name in selectors}
    for num_completions in _sizes(scores.shape[1]):
        for rows, columns in _windows(order, num_completions=num_completions, num_subsets=num_subsets):
            subset_scores = np.take_along_axis(scores[rows, None], columns, axis=-1)
            subset_classes = np.take_along_axis(classes[rows, None], columns, axis=-1)
            subset_right = np.take_along_axis(is_right[rows, None], columns, axis=-1)
            for name, choose in selectors.items():
                chances = choose(subset_scores, subset_classes)
                values = accuracies[name].setdefault(num_completions, np.empty(len(scores)))
                values[rows] = (chances * subset_right).sum(axis=-1).mean(axis=-1)
    return SelectionTable(
        num_problems=len(scores),
        num_subsets=num_subsets,
        rows=tuple(
            SelectionAccuracy(
                selector=name,
                num_completions=num_completions,
                accuracy=mean_with_interval(values.tolist()),
                gain_over_majority=_gain(values - accuracies[MAJORITY][num_completions]),
            )
            for name, curve in accuracies.items()
            for num_completions, values in curve.items()
        ),
    )


def _gain(differences: Float64Array) -> MeanWithInterval:
    if not differences.any():  # the same choices, not rare differences, which is how zeros would be read
        return MeanWithInterval(mean=0.0, low=0.0, high=0.0)
    return mean_with_interval(differences.tolist())


def _selectors(borda_powers: Sequence[float]) -> Mapping[str, Callable[[Float64Array, Int64Array], Float64Array]]:
    def borda(power: float) -> Callable[[Float64Array, Int64Array], Float64Array]:
        return lambda certainty, classes: borda_choice(certainty, class_ids=classes, power=power)

    return {
        "highest_certainty": lambda certainty, classes: highest_certainty_choice(certainty, class_ids=classes),
        **{f"borda_p{power:g}": borda(power) for power in borda_powers},
        MAJORITY: lambda _, classes: majority_choice(classes),
        "random": lambda _, classes: random_choice(classes),
    }


def _sizes(num_completions: int) -> list[int]:
    """1, 2, 4, ... and the number itself."""
    powers = [2**exponent for exponent in range(num_completions.bit_length())]
    return powers if powers[-1] == num_completions else [*powers, num_completions]


def _windows(order: Int64Array, *, num_completions: int, num_subsets: int) -> Iterator[tuple[slice, Int64Array]]:
    """Chunks of problems, each with the columns [problems, subsets, N] of its subsets."""
    num_problems, num_columns = order.shape
    if num_completions == num_columns:
        num_subsets = 1  # there is only one, and selectors do not look at the order
    starts = np.arange(num_subsets) * num_columns // num_subsets
    places = (starts[:, None] + np.arange(num_completions)) % num_columns
    chunk = max(1, _MAX_PAIRS // (num_subsets * num_completions**2))
    for first in range(0, num_problems, chunk):
        rows = slice(first, first + chunk)
        yield rows, order[rows][:, places]


def _checked(certainty: ArrayLike, *, class_ids: ArrayLike) -> tuple[Float64Array, Int64Array]:
    scores = np.asarray(certainty, dtype=np.float64)
    classes = np.asarray(class_ids)
    if not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(f"class_ids must be integers, got {classes.dtype}")
    if scores.ndim == 0 or scores.shape[-1] == 0 or scores.shape != classes.shape:
        raise ValueError(f"certainty and class_ids must be [..., N] alike, got {scores.shape} and {classes.shape}")
    if (classes < NO_ANSWER).any():
        raise ValueError(f"class_ids must be >= {NO_ANSWER}, got {classes.min()}")
    if not np.isfinite(scores[classes != NO_ANSWER]).all():
        raise ValueError("certainty is not finite for a completion with an answer")
    return scores, classes.astype(np.int64)


def _eligible(classes: Int64Array) -> NDArray[np.bool_]:
    """Who can be chosen: those with an answer, or everybody where there is none; bool[..., N]."""
    answered = classes != NO_ANSWER
    return answered | ~answered.any(axis=-1, keepdims=True)


def _normalised(weights: ArrayLike) -> Float64Array:
    array = np.asarray(weights, dtype=np.float64)
    return array / array.sum(axis=-1, keepdims=True)
