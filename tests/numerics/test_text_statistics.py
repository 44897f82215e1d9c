"""Distinct-n and repetition on token ids, reflection words in text, counted by hand."""

import numpy as np
import pytest

from system.numerics.text_statistics import count_reflection_words, distinct_n, repetition_n
from system.records import IntArray


def ids(*values: int) -> IntArray:
    return np.array(values, dtype=np.int32)


def test_distinct_n_counts_over_all_completions_together() -> None:
    # 12 23 31 12 | 12 24: six 2-grams, of which 12, 23, 31, 24 are distinct
    assert distinct_n([ids(1, 2, 3, 1, 2), ids(1, 2, 4)], n=2) == pytest.approx(4 / 6)
    assert distinct_n([ids(7, 7, 7, 7)], n=1) == pytest.approx(1 / 4)


def test_ngrams_do_not_cross_completions() -> None:
    assert distinct_n([ids(1, 2), ids(3, 4)], n=2) == 1.0
    assert distinct_n([ids(1), ids(2)], n=2) == 0.0


def test_repetition_is_the_mean_over_completions_long_enough() -> None:
    # 12 23 31 12: one of four occurred before; 56 67: none; the last is too short and not in the denominator
    assert repetition_n([ids(1, 2, 3, 1, 2), ids(5, 6, 7), ids(9)], n=2) == pytest.approx((1 / 4 + 0) / 2)
    assert repetition_n([], n=2) == 0.0
    assert repetition_n([ids(3, 3, 3, 3, 3)], n=4) == pytest.approx(1 / 2)


def test_large_ids_do_not_collide() -> None:
    assert distinct_n([ids(151_935, 0, 0, 151_935)], n=2) == 1.0


def test_counts_agree_with_a_set_of_tuples() -> None:
    rng = np.random.default_rng(0)
    completions = [rng.integers(0, 4, size=length).astype(np.int32) for length in (0, 1, 3, 10, 60)]
    for n in (1, 2, 3, 4):
        grams = [tuple(row[i : i + n].tolist()) for row in completions for i in range(len(row) - n + 1)]
        assert distinct_n(completions, n=n) == pytest.approx(len(set(grams)) / len(grams))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        distinct_n([ids(1)], n=0)
    with pytest.raises(ValueError, match=r"\[T\]"):
        repetition_n([np.zeros((2, 2), np.int32)], n=2)


def test_reflection_words_are_counted_whole_and_in_any_case() -> None:
    text = "Wait, 3 is odd. Let me check: 3*2=6. Waiting is no use. Let’s verify, then try again."
    assert count_reflection_words(text) == 4
    assert count_reflection_words("48/2=24\n48+24=72\n#72") == 0
    assert count_reflection_words("") == 0
