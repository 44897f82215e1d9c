"""Selectors against votes counted by hand and by plain loops; the table against its limits."""

from collections import defaultdict

import numpy as np
import pytest

from system.numerics.voting import (
    accuracy_against_n,
    borda_choice,
    highest_certainty_choice,
    majority_choice,
    random_choice,
)


def test_the_most_certain_completion_with_an_answer_is_chosen() -> None:
    choice = highest_certainty_choice([3.0, 9.0, 5.0, 5.0], class_ids=[0, -1, 1, 2])
    assert choice == pytest.approx([0.0, 0.0, 0.5, 0.5])


def test_borda_votes_of_a_counted_example() -> None:
    # places from the least certain: 1 2 3 4 5; class 0 has 1 + 2 + 3, class 1 has 5, class 2 has 4
    certainty, class_ids = [0.1, 0.2, 0.3, 0.5, 0.4], [0, 0, 0, 1, 2]
    assert borda_choice(certainty, class_ids=class_ids, power=1.0) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    # squares: 1 + 4 + 9 = 14 against 25 and 16
    assert borda_choice(certainty, class_ids=class_ids, power=2.0) == pytest.approx([0, 0, 0, 1, 0])


def test_completions_without_an_answer_neither_vote_nor_take_a_place() -> None:
    # among the answered ones: places 1 and 2 for class 0, 3 for class 1: a tie at power 1
    choice = borda_choice([0.1, 0.2, 0.3, 0.9, 0.15], class_ids=[0, 0, 1, -1, -1], power=1.0)
    assert choice == pytest.approx([0.25, 0.25, 0.5, 0.0, 0.0])


def test_tied_certainties_share_their_place() -> None:
    # places 1.5, 1.5, 3: class 0 has 3, class 1 has 3
    choice = borda_choice([0.1, 0.1, 0.2], class_ids=[0, 0, 1], power=1.0)
    assert choice == pytest.approx([0.25, 0.25, 0.5])


def test_majority_counts_members_and_tied_classes_are_equally_likely() -> None:
    assert majority_choice([4, 4, 7, -1, -1, -1]) == pytest.approx([0.5, 0.5, 0, 0, 0, 0])
    assert majority_choice([0, 0, 1, 1, 2]) == pytest.approx([0.25, 0.25, 0.25, 0.25, 0])
    assert majority_choice([0, 0, 1]) == pytest.approx([0.5, 0.5, 0])


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, 3.0])
def test_without_any_answer_all_are_equally_likely(power: float) -> None:
    assert borda_choice([1.0, 2.0], class_ids=[-1, -1], power=power) == pytest.approx([0.5, 0.5])
    assert highest_certainty_choice([np.nan, 2.0], class_ids=[-1, -1]) == pytest.approx([0.5, 0.5])
    assert random_choice([-1, 3]) == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("power", [0.3, 1.0, 2.5])
def test_batched_borda_equals_a_plain_loop(power: float) -> None:
    rng = np.random.default_rng(0)
    certainty, class_ids = rng.normal(size=(200, 12)), rng.integers(-1, 5, size=(200, 12))
    choices = borda_choice(certainty, class_ids=class_ids, power=power)
    for row in range(200):
        answered = [index for index in range(12) if class_ids[row, index] >= 0]
        ranked = sorted(answered, key=lambda index: -certainty[row, index])
        votes: defaultdict[int, float] = defaultdict(float)
        for rank, index in enumerate(ranked, start=1):
            votes[class_ids[row, index]] += (len(ranked) - rank + 1) ** power
        winners = [class_id for class_id, count in votes.items() if count > max(votes.values()) - 1e-9]
        expected = [
            1 / len(winners) / (class_ids[row] == class_id).sum() if class_id in winners else 0.0
            for class_id in class_ids[row]
        ]
        assert choices[row] == pytest.approx(expected)


def test_a_large_power_follows_the_most_certain_answer() -> None:
    rng = np.random.default_rng(1)
    certainty, class_ids = rng.normal(size=(50, 8)), rng.integers(0, 3, size=(50, 8))
    best = class_ids[np.arange(50), certainty.argmax(axis=1)]
    chosen = borda_choice(certainty, class_ids=class_ids, power=50.0).argmax(axis=1)
    assert (class_ids[np.arange(50), chosen] == best).all()


def simulated(num_problems: int, *, num_completions: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right answers are class 0 and more certain; wrong ones are spread over five classes."""
    rng = np.random.default_rng(seed)
    difficulty = rng.uniform(0.1, 0.7, size=(num_problems, 1))
    right = rng.uniform(size=(num_problems, num_completions)) < difficulty
    class_ids = np.where(right, 0, rng.integers(-1, 5, size=right.shape))
    class_ids = np.where(~right & (class_ids == 0), 5, class_ids)
    return rng.normal(size=right.shape) + right, class_ids, right


def test_the_table_is_exact_at_one_and_at_all_completions() -> None:
    certainty, class_ids, right = simulated(40, num_completions=6, seed=2)
    table = accuracy_against_n(certainty, class_ids=class_ids, right=right, num_subsets=6)
    assert [row.num_completions for row in table.rows if row.selector == "majority"] == [1, 2, 4, 6]
    for selector in ("highest_certainty", "borda_p0.7", "majority", "random"):
        # six windows of one completion are all six
        assert table.row(selector, num_completions=1).accuracy["mean"] == pytest.approx(right.mean())
        assert table.row("random", num_completions=4).accuracy["mean"] == pytest.approx(right.mean())
    expected = (highest_certainty_choice(certainty, class_ids=class_ids) * right).sum(axis=1).mean()
    assert table.row("highest_certainty", num_completions=6).accuracy["mean"] == pytest.approx(expected)
    gain = table.row("highest_certainty", num_completions=6).gain_over_majority["mean"]
    majority = (majority_choice(class_ids) * right).sum(axis=1).mean()
    assert gain == pytest.approx(expected - majority)
    assert table.row("majority", num_completions=4).gain_over_majority == {"mean": 0.0, "low": 0.0, "high": 0.0}
    with pytest.raises(KeyError, match="N = 3"):
        table.row("majority", num_completions=3)


def test_informative_certainty_beats_majority_and_more_completions_help() -> None:
    certainty, class_ids, right = simulated(200, num_completions=16, seed=3)
    table = accuracy_against_n(certainty, class_ids=class_ids, right=right, borda_powers=(1.0,), num_subsets=4)
    curve = [table.row("borda_p1", num_completions=size).accuracy for size in (1, 4, 16)]
    assert curve[0]["high"] < curve[1]["low"] < curve[1]["high"] < curve[2]["low"]
    assert table.row("borda_p1", num_completions=8).gain_over_majority["low"] > 0.0


def test_subsets_are_drawn_without_bias_and_seeded() -> None:
    # certainty falls with the index: a biased choice of subsets would show
    certainty = np.tile(np.arange(8.0, 0.0, -1.0), (1000, 1))
    class_ids = np.tile(np.arange(8), (1000, 1))
    right = class_ids == 0
    table = accuracy_against_n(certainty, class_ids=class_ids, right=right, borda_powers=(), num_subsets=1)
    for size in (1, 2, 4, 8):
        accuracy = table.row("highest_certainty", num_completions=size).accuracy["mean"]
        assert accuracy == pytest.approx(size / 8, abs=0.06)  # the first completion is among them
    first_50 = {"class_ids": class_ids[:50], "right": right[:50]}
    tables = [accuracy_against_n(certainty[:50], **first_50, num_subsets=1, seed=seed) for seed in (0, 0, 1)]
    assert tables[0] == tables[1] != tables[2]


@pytest.mark.parametrize(
    ("certainty", "class_ids", "message"),
    [
        ([1.0, 2.0], [0], "alike"),
        ([], np.array([], dtype=np.int64), "alike"),
        ([np.nan, 2.0], [0, 1], "not finite"),
        ([1.0, 2.0], [0, -2], ">= -1"),
        ([1.0, 2.0], [0.0, 1.0], "integers"),
    ],
)
def test_bad_input_is_refused(certainty: object, class_ids: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        highest_certainty_choice(certainty, class_ids=class_ids)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        borda_choice(certainty, class_ids=class_ids, power=1.0)  # type: ignore[arg-type]


def test_bad_arguments_of_the_table_are_refused() -> None:
    certainty, class_ids, right = simulated(3, num_completions=4, seed=0)
    with pytest.raises(ValueError, match="power"):
        borda_choice(certainty, class_ids=class_ids, power=-1.0)
    with pytest.raises(ValueError, match="P, N_max"):
        accuracy_against_n(certainty, class_ids=class_ids, right=right[:, :3])
    with pytest.raises(ValueError, match="P, N_max"):
        accuracy_against_n(certainty[0], class_ids=class_ids[0], right=right[0])
    with pytest.raises(ValueError, match="powers differ"):
        accuracy_against_n(certainty, class_ids=class_ids, right=right, borda_powers=(1.0, 1.0))
    with pytest.raises(ValueError, match="num_subsets"):
        accuracy_against_n(certainty, class_ids=class_ids, right=right, num_subsets=0)
