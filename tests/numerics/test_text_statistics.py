"""Distinct-n and repetition on token ids, reflection words in text, counted by hand."""

import re

import numpy as np
import pytest

from system.numerics.text_statistics import (
    REFLECTION_WORDS,
    STEMS,
    count_reflection_words,
    distinct_n,
    repetition_n,
)
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


@pytest.mark.parametrize("highest", [30, 60_000, 200_000, 2**31 - 1])
def test_counts_agree_with_a_set_of_tuples_whatever_the_size_of_the_vocabulary(highest: int) -> None:
    rng = np.random.default_rng(highest)
    vocabulary = rng.integers(0, highest, size=20_000)  # 4-grams of so many ids fit into 64 bits, of 200,000 do not
    for num_ids in (3, 20_000):
        completions = [rng.choice(vocabulary[:num_ids], size=length).astype(np.int32) for length in (3, 4, 500, 30_000)]
        rows = [[tuple(row[i : i + 4].tolist()) for i in range(len(row) - 3)] for row in completions]
        expected = [1 - len(set(grams)) / len(grams) for grams in rows if grams]
        assert repetition_n(completions, n=4) == pytest.approx(sum(expected) / 3, abs=1e-12)
        grams = [gram for each in rows for gram in each]
        assert distinct_n(completions, n=4) == len(set(grams)) / len(grams)


def test_more_ids_than_64_bits_tell_apart_are_counted_too() -> None:
    row = np.arange(1000, dtype=np.int32)
    assert distinct_n([row, row], n=7) == 0.5
    assert repetition_n([row, np.concatenate([row, row])], n=7) == pytest.approx((0 + 994 / 1994) / 2)


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


def test_every_reflection_word_holds_a_stem() -> None:
    assert all(any(stem in word for stem in STEMS) for word in REFLECTION_WORDS)


def test_counts_are_those_of_a_search_for_the_words_themselves() -> None:
    rng = np.random.default_rng(0)
    parts = [*REFLECTION_WORDS, *STEMS, "ing", "the", "≤", "’", "K", "ſ", "İ", "ı", "-", "", "RE", "Let me", "double"]
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, REFLECTION_WORDS))})\b", re.IGNORECASE)
    num_counted = 0
    for number in range(300):
        usual = parts if number % 2 else [part for part in parts if part.isascii() or part in "≤’"]
        words = rng.choice(usual, size=rng.integers(1, 60))
        text = "".join(word.title() * (word != "") + rng.choice(["", " ", ", ", "\n"]) for word in words)
        expected = len(pattern.findall(text.replace("’", "'")))
        assert count_reflection_words(text) == expected, text
        num_counted += expected
    assert num_counted > 1000
