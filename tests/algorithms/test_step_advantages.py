"""From step values to per-token advantages: centring on the group, spreading over tokens."""

import math

import numpy as np
import pytest

from system.algorithms.steps import spread_to_tokens, step_advantages


def test_every_token_gets_the_value_of_its_step() -> None:
    tokens = spread_to_tokens(np.array([0.5, -1.0, 2.0]), step_ends=np.array([2, 3, 7]), num_tokens=7)
    assert tokens.tolist() == [0.5, 0.5, -1.0, 2.0, 2.0, 2.0, 2.0]
    assert tokens.dtype == np.float32


def arrays(*rows: list[float]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.float64) for row in rows]


def test_step_values_are_centred_on_the_group_at_equal_relative_step() -> None:
    # first at 0, 1/2 and second at 0, 1/4, 2/4, 3/4: step 1 of the first meets step 2 of the second,
    # steps 0, 1 and 2, 3 of the second meet steps 0 and 1 of the first; means 1/2, 7/2 and 1/2, 3/2, 7/2, 9/2
    advantages = step_advantages(arrays([1, 3], [0, 2, 4, 6]), valid=np.array([True, True]))
    assert advantages[0].tolist() == [0.5, -0.5]
    assert advantages[1].tolist() == [-0.5, 0.5, 0.5, 1.5]


def test_relative_steps_round_down_when_lengths_do_not_divide() -> None:
    # first: step 1 at 1/2 meets floor(3/2) = 1; second: steps at 0, 1/3, 2/3 meet 0, floor(2/3) = 0, floor(4/3) = 1
    # means (0 + 10)/2, (8 + 20)/2 and (10 + 0)/2, (20 + 0)/2, (30 + 8)/2
    advantages = step_advantages(arrays([0, 8], [10, 20, 30]), valid=np.array([True, True]))
    assert advantages[0].tolist() == [-5.0, -6.0]
    assert advantages[1].tolist() == [5.0, 10.0, 11.0]


def test_members_that_are_invalid_or_without_steps_do_not_count_in_the_mean() -> None:
    values = arrays([1, 3], [math.nan, 7, 7], [], [2, 5])
    advantages = step_advantages(values, valid=np.array([True, False, True, True]))
    # means over the first and the last only: 3/2, 4
    assert [row.tolist() for row in advantages] == [[-0.5, -1.0], [0.0, 0.0, 0.0], [], [0.5, 1.0]]


@pytest.mark.parametrize("num_steps", [1, 3, 10, 49, 103, 107])
def test_a_response_meets_itself_at_its_own_steps(num_steps: int) -> None:
    # floor(t / S * S) in floats is t - 1 for S = 49
    (alone,) = step_advantages([np.arange(num_steps, dtype=np.float64)], valid=np.array([True]))
    assert alone.tolist() == [0.0] * num_steps


def test_without_centring_valid_values_stay_as_they_are() -> None:
    values = arrays([1, 3], [9])
    advantages = step_advantages(values, valid=np.array([True, False]), subtract_group_mean=False)
    assert [row.tolist() for row in advantages] == [[1.0, 3.0], [0.0]]


def test_centring_leaves_the_given_values_untouched() -> None:
    values = arrays([1, 3], [0, 2])
    step_advantages(values, valid=np.array([True, True]))
    assert [row.tolist() for row in values] == [[1.0, 3.0], [0.0, 2.0]]


def test_centred_advantages_of_responses_with_equally_many_steps_sum_to_zero() -> None:
    rng = np.random.default_rng(2)
    advantages = step_advantages(list(rng.normal(size=(6, 5))), valid=np.ones(6, dtype=np.bool_))
    np.testing.assert_allclose(np.sum(advantages, axis=0), np.zeros(5), atol=1e-12)


@pytest.mark.parametrize(
    ("values", "valid", "message"),
    [
        (arrays([1, 2]), np.array([True, True]), r"valid must be bool\[G\], G = 1"),
        (arrays([1, 2]), np.array([1]), r"valid must be bool\[G\]"),
        ([np.zeros((2, 2))], np.array([True]), r"step_values\[0\] must be float\[S\]"),
        ([np.zeros(1), np.zeros(2, dtype=np.int64)], np.array([True, True]), r"step_values\[1\] must be float\[S\]"),
        (arrays([1, math.nan]), np.array([True]), r"step_values\[0\] of a valid member must be finite"),
    ],
)
def test_bad_groups_are_refused(values: list[np.ndarray], valid: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step_advantages(values, valid=valid)


@pytest.mark.parametrize(
    ("values", "step_ends", "num_tokens", "message"),
    [
        (np.zeros((1, 2)), np.array([1, 2]), 2, r"step_values must be float\[S\]"),
        (np.array([1, 2]), np.array([1, 2]), 2, r"step_values must be float\[S\], got int64"),
        (np.zeros(2), np.array([2]), 2, r"step_ends must be int\[S\]"),
        (np.zeros(2), np.array([1.0, 2.0]), 2, r"step_ends must be int\[S\]"),
        (np.zeros(2), np.array([0, 2]), 2, "must ascend"),
        (np.zeros(2), np.array([2, 2]), 2, "must ascend"),
        (np.zeros(2), np.array([3, 2]), 2, "must ascend"),
        (np.zeros(2), np.array([1, 2]), 3, "must end at num_tokens = 3"),
        (np.zeros(0), np.array([], dtype=np.int64), 4, "must end at num_tokens = 4"),
    ],
)
def test_bad_steps_are_refused(values: np.ndarray, step_ends: np.ndarray, num_tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spread_to_tokens(values, step_ends=step_ends, num_tokens=num_tokens)
