"""Group-relative advantages against hand-computed numbers."""

import math
import statistics

import numpy as np
import pytest

from system.algorithms.advantages import Baseline, group_advantages


def rewards_of(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def all_valid(size: int) -> np.ndarray:
    return np.ones(size, dtype=np.bool_)


def test_mean_baseline_divides_by_the_sample_standard_deviation() -> None:
    # mean 0.25; squared deviations 0.5625 + 3 * 0.0625 = 0.75; / 3 = 0.25; std 0.5
    advantages = group_advantages(rewards_of(1, 0, 0, 0), valid=all_valid(4), epsilon=0.0)
    np.testing.assert_allclose(advantages, [1.5, -0.5, -0.5, -0.5], atol=1e-7)
    assert advantages.dtype == np.float32


def test_epsilon_is_added_to_the_standard_deviation() -> None:
    advantages = group_advantages(rewards_of(1, 0, 0, 0), valid=all_valid(4), epsilon=0.25)
    np.testing.assert_allclose(advantages, [1.0, -1 / 3, -1 / 3, -1 / 3], atol=1e-7)


def test_without_std_the_advantage_keeps_the_unit_of_the_reward() -> None:
    advantages = group_advantages(rewards_of(1, 0, 0, 1), valid=all_valid(4), normalise_std=False)
    np.testing.assert_allclose(advantages, [0.5, -0.5, -0.5, 0.5], atol=1e-7)


def test_leave_one_out_subtracts_the_mean_of_the_others() -> None:
    advantages = group_advantages(
        rewards_of(3, 1, 2, 0), valid=all_valid(4), baseline="leave_one_out", normalise_std=False
    )
    np.testing.assert_allclose(advantages, [3 - 1, 1 - 5 / 3, 2 - 4 / 3, 0 - 2], atol=1e-6)


def test_leave_one_out_with_std() -> None:
    # deviations from the others' mean: 1 and -1/3; std 0.5
    advantages = group_advantages(rewards_of(1, 0, 0, 0), valid=all_valid(4), baseline="leave_one_out", epsilon=0.0)
    np.testing.assert_allclose(advantages, [2.0, -2 / 3, -2 / 3, -2 / 3], atol=1e-6)


def test_invalid_members_get_zero_and_do_not_count() -> None:
    valid = np.array([True, False, True, True, False])
    rewards = rewards_of(1, float("nan"), 0, 0.5, 100)
    # valid: 1, 0, 0.5; mean 0.5; std sqrt((0.25 + 0.25) / 2) = 0.5
    advantages = group_advantages(rewards, valid=valid, epsilon=0.0)
    np.testing.assert_allclose(advantages, [1.0, 0.0, -1.0, 0.0, 0.0], atol=1e-7)


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("normalise_std", [True, False])
@pytest.mark.parametrize(
    ("rewards", "valid"),
    [
        (rewards_of(0.1, 0.1, 0.1), [True, True, True]),
        (rewards_of(1, 0, 0), [True, False, False]),
        (rewards_of(1, 0, 0), [False, False, False]),
        (rewards_of(1, 0, 0), [False, True, True]),
        (rewards_of(1), [True]),
        (rewards_of(), []),
    ],
)
def test_groups_that_say_nothing_have_zero_advantages(
    rewards: np.ndarray, valid: list[bool], baseline: Baseline, normalise_std: bool
) -> None:
    advantages = group_advantages(
        rewards, valid=np.array(valid, dtype=np.bool_), baseline=baseline, normalise_std=normalise_std, epsilon=0.0
    )
    assert advantages.tolist() == [0.0] * len(valid)


def test_advantages_of_valid_members_sum_to_zero_and_agree_with_the_statistics_module() -> None:
    generator = np.random.default_rng(3)
    for _ in range(50):
        size = int(generator.integers(2, 17))
        rewards = generator.normal(size=size).astype(np.float32)
        valid = generator.random(size) < 0.7
        advantages = group_advantages(rewards, valid=valid, epsilon=1e-6)
        assert abs(float(advantages.sum())) < 1e-5
        members = [float(reward) for reward in rewards[valid]]
        if len(members) >= 2:
            expected = [(member - statistics.mean(members)) / (statistics.stdev(members) + 1e-6) for member in members]
            np.testing.assert_allclose(advantages[valid], expected, atol=1e-5)


def test_advantages_ignore_a_shift_and_a_positive_scale_of_the_rewards() -> None:
    rewards = rewards_of(0.3, -1.2, 0.8, 0.1)
    reference = group_advantages(rewards, valid=all_valid(4), epsilon=0.0)
    shifted = group_advantages(rewards * 4 + 7, valid=all_valid(4), epsilon=0.0)
    np.testing.assert_allclose(shifted, reference, atol=1e-5)


def test_small_differences_on_a_large_offset_survive() -> None:
    # float32 sums would lose them: the mean is taken in float64.
    rewards = np.array([100_000.0, 100_000.0, 100_000.0, 100_000.0078125], dtype=np.float32)
    advantages = group_advantages(rewards, valid=all_valid(4), epsilon=0.0)
    np.testing.assert_allclose(advantages, [-0.5, -0.5, -0.5, 1.5], atol=1e-6)


@pytest.mark.parametrize(
    ("rewards", "valid", "options", "message"),
    [
        (rewards_of(1, 0), np.ones(3, dtype=np.bool_), {}, r"\[G\]"),
        (np.ones((2, 2), dtype=np.float32), np.ones((2, 2), dtype=np.bool_), {}, r"\[G\]"),
        (rewards_of(1, 0), np.array([1, 1]), {}, "bool"),
        (np.array([1, 0]), np.ones(2, dtype=np.bool_), {}, "floating"),
        (rewards_of(1, math.nan), np.ones(2, dtype=np.bool_), {}, "finite"),
        (rewards_of(1, math.inf), np.ones(2, dtype=np.bool_), {}, "finite"),
        (rewards_of(1, 0), np.ones(2, dtype=np.bool_), {"epsilon": -1.0}, "epsilon"),
        (rewards_of(1, 0), np.ones(2, dtype=np.bool_), {"baseline": "median"}, "median"),
    ],
)
def test_bad_input_is_refused(rewards: np.ndarray, valid: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, valid=valid, **options)
