"""How varied completions are, from token ids, and how often they announce a second thought, from their text.

Called for the metrics of every update, so it costs one sort of the n-grams and one search of the text.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from system.records import IntArray

# Words with which English reasoning turns back on itself, after the kinds that the BARL paper counts.
REFLECTION_WORDS = (
    "wait", "alternatively", "let me check", "let me verify", "let's check", "let's verify", "double-check",
    "check again", "re-check", "recheck", "re-examine", "reexamine", "re-evaluate", "reevaluate", "reconsider",
    "rethink", "think again", "on second thought", "start over", "try another", "try again", "another approach",
    "another way", "made a mistake", "made an error",
)  # fmt: skip
_REFLECTION = re.compile(rf"\b(?:{'|'.join(map(re.escape, REFLECTION_WORDS))})\b", re.IGNORECASE)
# Each of the words holds one of these: to look for them is many times faster than to try the words at every character.
STEMS = (
    "wait", "alternatively", "check", "verify", "examine", "evaluate", "reconsider", "think", "second thought",
    "start over", "try a", "another ", "made a",
)  # fmt: skip
_REACH = max(map(len, REFLECTION_WORDS))
_FOLDS_TO_ASCII = ("\N{LATIN SMALL LETTER LONG S}", "\N{LATIN SMALL LETTER DOTLESS I}")  # where case is ignored
_MOST_KEYS = 2**63  # n-grams that a 64-bit integer tells apart


def count_reflection_words(text: str) -> int:
    """How often one of REFLECTION_WORDS occurs in `text`, whatever its case, as whole words."""
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    lowered = text.lower()
    if len(lowered) != len(text) or any(letter in lowered for letter in _FOLDS_TO_ASCII):
        return len(_REFLECTION.findall(text))
    return sum(len(_REFLECTION.findall(text, start, end)) for start, end in _around_stems(lowered))


def _around_stems(lowered: str) -> Iterator[tuple[int, int]]:
    """Ascending stretches that do not overlap and that hold every word around a stem whole."""
    found = []
    for stem in STEMS:
        position = lowered.find(stem)
        while position >= 0:
            found.append((max(0, position - _REACH), position + len(stem) + _REACH))
            position = lowered.find(stem, position + 1)
    found.sort()
    while found:
        start, end = found[0]
        count = 1
        while count < len(found) and found[count][0] <= end:
            end = max(end, found[count][1])
            count += 1
        del found[:count]
        yield start, end


def distinct_n(completions: Sequence[IntArray], *, n: int) -> float:
    """Distinct n-grams over all n-grams of all completions together, 0-1; 0 when there is none.

    `completions` are int[T] each; n-grams do not cross from one to the next. Raises ValueError for n < 1 or other
    shapes. Source: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models",
    arXiv 1510.03055, section 5.
    """
    num_grams = _num_ngrams(completions, n=n)
    packed = _packed(completions, n=n)
    if packed is not None:
        return _num_distinct(np.concatenate(packed)) / num_grams if num_grams else 0.0
    rows = np.concatenate([_rows(completion, n=n) for completion in completions])
    return _num_distinct_rows(rows) / num_grams if num_grams else 0.0


def repetition_n(completions: Sequence[IntArray], *, n: int) -> float:
    """Share of a completion's n-grams that already occurred in it, 0-1.

        1 - distinct n-grams / n-grams, mean over the completions with at least n tokens; 0 when there is none.

    `completions` are int[T] each. Raises ValueError for n < 1 or other shapes. Source: Welleck et al., "Neural Text
    Generation with Unlikelihood Training", arXiv 1908.04319, section 5 (seq-rep-n).
    """
    _num_ngrams(completions, n=n)
    grams = _packed(completions, n=n)
    if grams is None:  # the ids of one completion alone are fewer
        repeated = [_repeated_rows(completion, n=n) for completion in completions if len(completion) >= n]
    else:
        repeated = [1.0 - _num_distinct(keys) / len(keys) for keys in grams if len(keys)]
    return sum(repeated) / len(repeated) if repeated else 0.0


def _repeated_rows(completion: IntArray, *, n: int) -> float:
    packed = _packed([completion], n=n)
    num_distinct = _num_distinct_rows(_rows(completion, n=n)) if packed is None else _num_distinct(packed[0])
    return 1.0 - num_distinct / (len(completion) - n + 1)


def _num_ngrams(completions: Sequence[IntArray], *, n: int) -> int:
    """Of all completions. Raises ValueError as its callers say."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    for completion in completions:
        if completion.ndim != 1:
            raise ValueError(f"token_ids must be [T], got shape {completion.shape}")
    return sum(max(0, len(completion) - n + 1) for completion in completions)


def _packed(completions: Sequence[IntArray], *, n: int) -> list[NDArray[np.integer]] | None:
    """All n-grams in order, one integer for each, which differ where the n-grams do; None: they are too many for that.

    key(i) = sum over k of id(i + k) * radix^(n - 1 - k),    0 <= id < radix
    """
    if not completions or not sum(map(len, completions)):
        return [np.empty(0, np.int64)] * len(completions)
    ids = np.concatenate(completions).astype(np.int64)
    lowest = int(ids.min())
    ids -= lowest
    radix = int(ids.max()) + 1
    if radix**n > _MOST_KEYS:
        distinct = np.sort(ids)
        distinct = distinct[np.flatnonzero(np.diff(distinct, prepend=-1))]
        radix = len(distinct)
        if radix**n > _MOST_KEYS:
            return None
        ids = np.searchsorted(distinct, ids)
    packed: list[NDArray[np.integer]] = []
    start = 0
    kind: type[np.integer] = np.uint32 if radix**n <= 2**32 else np.int64  # half as long sorts in half the time
    ids = ids.astype(kind)
    for completion in completions:
        own = ids[start : start + len(completion)]
        start += len(completion)
        num_grams = max(0, len(own) - n + 1)
        keys: NDArray[np.integer] = own[:num_grams]
        for offset in range(1, n):
            keys = keys * kind(radix) + own[offset : offset + num_grams]
        packed.append(keys)
    return packed


def _num_distinct(keys: NDArray[np.integer]) -> int:
    ascending = np.sort(keys)  # np.unique builds a hash table, which takes fifty times as long
    return int(np.count_nonzero(ascending[1:] != ascending[:-1])) + 1 if len(keys) else 0


def _rows(token_ids: IntArray, *, n: int) -> NDArray[np.integer]:
    """All n-grams in order, [max(T - n + 1, 0), n]."""
    if len(token_ids) < n:
        return np.empty((0, n), dtype=token_ids.dtype)
    return np.lib.stride_tricks.sliding_window_view(token_ids, n)


def _num_distinct_rows(rows: NDArray[np.integer]) -> int:
    # Whole rows viewed as one opaque item sort several times faster than np.unique(axis=0).
    items = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))
    return len(np.unique(items))
