"""The Mann-Whitney comparison against counted pairs and against a published table."""

from math import comb, isnan

import numpy as np
import pytest

from system.numerics.certainty_statistics import compare_certainty, compare_within_problems


def test_a_small_example_counted_by_hand() -> None:
    # pairs (right, wrong): 5>1 5>2 5>4, 3>1 3>2 3<4: U = 5 of 6
    comparison = compare_certainty([5.0, 3.0], wrong=[1.0, 2.0, 4.0])
    assert comparison.u_statistic == 5.0
    assert comparison.auc == pytest.approx(5 / 6)
    assert comparison.rank_biserial == pytest.approx(2 / 3)
    # exact: of the C(5, 2) placements of the right ones, U >= 5 in 2 and U <= 1 in 2
    assert comparison.p_value == pytest.approx(4 / comb(5, 2))
    assert (comparison.right.num_completions, comparison.right.mean, comparison.right.median) == (2, 4.0, 4.0)
    assert (comparison.wrong.num_completions, comparison.wrong.median) == (3, 2.0)
    assert comparison.wrong.mean == pytest.approx(7 / 3)


def test_the_sign_says_which_side_is_more_certain() -> None:
    low, high = np.arange(20.0), np.arange(20.0) + 100.0
    assert compare_certainty(high, wrong=low).rank_biserial == 1.0
    assert compare_certainty(low, wrong=high).rank_biserial == -1.0
    assert compare_certainty(low, wrong=high).p_value == compare_certainty(high, wrong=low).p_value < 1e-6


def test_ties_count_half() -> None:
    comparison = compare_certainty([1.0, 2.0], wrong=[1.0, 1.0])
    assert comparison.auc == pytest.approx((2 + 0.5 * 2) / 4)
    equal = compare_certainty([3.0] * 5, wrong=[3.0] * 4)
    assert (equal.auc, equal.rank_biserial, equal.p_value) == (0.5, 0.0, 1.0)


def test_p_values_under_the_null_are_rarely_small() -> None:
    rng = np.random.default_rng(0)
    p_values = [compare_certainty(rng.normal(size=40), wrong=rng.normal(size=60)).p_value for _ in range(300)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.035)


def test_differences_between_problems_do_not_count_within_problems() -> None:
    rng = np.random.default_rng(1)
    difficulty = rng.uniform(0.05, 0.95, size=200)
    problem_ids = [f"p{problem}" for problem in range(200) for _ in range(8)]
    right = rng.uniform(size=1600) < np.repeat(difficulty, 8)
    certainty = np.repeat(5.0 * difficulty, 8) + rng.normal(size=1600)  # knows the problem, not the completion
    pooled = compare_certainty(certainty[right], wrong=certainty[~right])
    within = compare_within_problems(certainty, right=right, problem_ids=problem_ids)
    assert pooled.auc > 0.7
    assert within.auc["low"] < 0.5 < within.auc["high"]
    assert within.num_problems + within.num_problems_left_out == 200


def test_within_problems_is_the_mean_of_each_problems_area() -> None:
    within = compare_within_problems(
        [1.0, 2.0, 3.0, 9.0, 8.0, 7.0, 7.0],
        right=[False, True, True, True, True, False, True],
        problem_ids=["a", "a", "b", "b", "c", "c", "c"],
    )
    # a: 2 > 1; b has no wrong one; c: 8 > 7 and 7 = 7
    assert within.auc["mean"] == pytest.approx((1.0 + 0.75) / 2)
    assert within.rank_biserial == pytest.approx(0.75)
    assert (within.num_problems, within.num_problems_left_out) == (2, 1)


def test_problems_without_both_kinds_give_nan() -> None:
    within = compare_within_problems([1.0, 2.0], right=[True, False], problem_ids=["a", "b"])
    assert isnan(within.auc["mean"])
    assert isnan(within.rank_biserial)
    assert (within.num_problems, within.num_problems_left_out) == (0, 2)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ([], [1.0], "right is empty"),
        ([1.0], [], "wrong is empty"),
        ([1.0, np.inf, np.nan], [1.0], "right holds 2 values"),
        ([1.0], [[1.0]], "one certainty for each"),
    ],
)
def test_input_that_says_nothing_is_refused(right: list[float], wrong: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_certainty(right, wrong=wrong)


def test_arrays_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="alike"):
        compare_within_problems([1.0, 2.0], right=[True], problem_ids=["a", "b"])
    with pytest.raises(ValueError, match="alike"):
        compare_within_problems([1.0, 2.0], right=[True, False], problem_ids=["a"])
