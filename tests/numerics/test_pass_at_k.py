"""pass@k against enumeration, intervals against textbook numbers."""

from itertools import combinations
from math import isnan

import numpy as np
import pytest

from system.numerics.pass_at_k import mean_with_interval, pass_at_k, wilson_interval


def enumerated_pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    outcomes = [index < num_correct for index in range(num_samples)]
    draws = [any(draw) for draw in combinations(outcomes, k)]
    return float(np.mean(draws, dtype=np.float64))


@pytest.mark.parametrize("num_samples", [1, 2, 5, 8])
def test_equals_the_share_of_all_draws_with_a_right_sample(num_samples: int) -> None:
    for num_correct in range(num_samples + 1):
        for k in range(1, num_samples + 1):
            expected = enumerated_pass_at_k(num_samples, num_correct, k)
            assert pass_at_k(num_samples, num_correct=num_correct, k=k) == pytest.approx(expected, abs=1e-14)


def test_pass_at_1_is_the_accuracy_and_large_n_stays_exact() -> None:
    assert pass_at_k(8, num_correct=3, k=1) == pytest.approx(3 / 8)
    assert pass_at_k(10_000, num_correct=1, k=100) == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize(("num_correct", "k"), [(-1, 1), (9, 1), (3, 0), (3, 9)])
def test_impossible_counts_are_refused(num_correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="is not within"):
        pass_at_k(8, num_correct=num_correct, k=k)


def test_wilson_interval_of_published_examples() -> None:
    assert wilson_interval(81, num_trials=263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, num_trials=20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(1, num_trials=29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(1, num_trials=0)


def test_zero_one_values_get_the_wilson_interval() -> None:
    result = mean_with_interval([1.0] * 81 + [0.0] * 182)
    assert result["mean"] == pytest.approx(81 / 263)
    assert (result["low"], result["high"]) == wilson_interval(81, num_trials=263)


def test_bootstrap_interval_agrees_with_the_normal_one_and_is_seeded() -> None:
    values = np.random.default_rng(1).choice([0.0, 0.25, 0.5, 1.0], size=400).tolist()
    result = mean_with_interval(values)
    half_width = 1.96 * np.std(values) / np.sqrt(400)
    assert result["low"] == pytest.approx(np.mean(values) - half_width, abs=0.004)
    assert result["high"] == pytest.approx(np.mean(values) + half_width, abs=0.004)
    assert mean_with_interval(values) == result
    assert mean_with_interval(values, seed=1) != result


def test_no_values_give_nan_and_wrong_shapes_an_error() -> None:
    assert all(isnan(value) for value in (mean_with_interval([])["mean"], mean_with_interval([])["low"]))
    with pytest.raises(ValueError, match="one number per problem"):
        mean_with_interval(np.zeros((2, 3)))  # type: ignore[arg-type]
