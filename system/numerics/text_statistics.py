"""How varied completions are, from token ids, and how often they announce a second thought, from their text.

Called for the metrics of every update, so it costs one sort of the n-grams and one search of the text.
"""

import re
from collections.abc import Sequence

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


def count_reflection_words(text: str) -> int:
    """How often one of REFLECTION_WORDS occurs in `text`, whatever its case, as whole words."""
    return len(_REFLECTION.findall(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")))


def distinct_n(completions: Sequence[IntArray], *, n: int) -> float:
    """Distinct n-grams over all n-grams of all completions together, 0-1; 0 when there is none.

    `completions` are int[T] each; n-grams do not cross from one to the next. Raises ValueError for n < 1 or other
    shapes. Source: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models",
    arXiv 1510.03055, section 5.
    """
    grams = [_ngrams(completion, n=n) for completion in completions]
    num_grams = sum(len(rows) for rows in grams)
    return _num_distinct(np.concatenate(grams)) / num_grams if num_grams else 0.0


def repetition_n(completions: Sequence[IntArray], *, n: int) -> float:
    """Share of a completion's n-grams that already occurred in it, 0-1.

        1 - distinct n-grams / n-grams, mean over the completions with at least n tokens; 0 when there is none.

    `completions` are int[T] each. Raises ValueError for n < 1 or other shapes. Source: Welleck et al., "Neural Text
    Generation with Unlikelihood Training", arXiv 1908.04319, section 5 (seq-rep-n).
    """
    repeated = [
        1.0 - _num_distinct(rows) / len(rows)
        for rows in (_ngrams(completion, n=n) for completion in completions)
        if len(rows)
    ]
    return sum(repeated) / len(repeated) if repeated else 0.0


def _ngrams(token_ids: IntArray, *, n: int) -> NDArray[np.integer]:
    """All n-grams in order, [max(T - n + 1, 0), n]."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if token_ids.ndim != 1:
        raise ValueError(f"token_ids must be [T], got shape {token_ids.shape}")
    if len(token_ids) < n:
        return np.empty((0, n), dtype=token_ids.dtype)
    return np.lib.stride_tricks.sliding_window_view(token_ids, n)


def _num_distinct(rows: NDArray[np.integer]) -> int:
    # Whole rows viewed as one opaque item sort several times faster than np.unique(axis=0).
    items = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))
    return len(np.unique(items))
