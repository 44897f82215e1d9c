"""The decisions of the autoscaling over literal sequences: one character is one look, a second after the one before.

w  calls wait and the learner waits    W  calls wait, the learner is busy
-  half full, nothing waits            i  nearly nothing to do
"""

import pytest

from system.runtime.autoscaler import Bounds, PoolObservation, decide

BOUNDS = Bounds(smallest=1, largest=4)


def looks(
    pattern: str, *, desired: int = 2, num_serving: int | None = None, start: float = 0.0
) -> list[PoolObservation]:
    num_serving = desired if num_serving is None else num_serving
    load_of = {"w": 8 * num_serving, "W": 8 * num_serving, "-": 4 * num_serving, "i": 1}
    return [
        PoolObservation(
            seconds=start + second,
            desired=desired,
            num_serving=num_serving,
            num_waiting=3 if character in "wW" else 0,
            load=load_of[character],
            room_of_worker=8,
            is_learner_waiting=character == "w",
        )
        for second, character in enumerate(pattern)
    ]


@pytest.mark.parametrize(
    ("pattern", "decision"),
    [
        ("w" * 30, 2),  # not seen for long enough
        ("w" * 31, 3),
        ("-" * 20 + "w" * 16, 3),  # half of the last 30 s
        ("-" * 20 + "w" * 14, 2),
        ("ww-" * 11, 3),  # with interruptions, as between the updates of a synchronous run
        ("w--" * 11, 2),
        ("W" * 100, 2),  # the learner is the slower one
        ("i" * 120, 2),
        ("i" * 121, 1),
        ("i" * 109 + "-" * 12, 1),
        ("i" * 100 + "-" * 21, 2),
        ("i" * 90 + "w" * 30, 3),  # starving goes before idling
        ("-" * 300, 2),  # between the lines nothing changes
    ],
)
def test_decisions(pattern: str, decision: int) -> None:
    assert decide(looks(pattern), BOUNDS) == decision


def test_each_change_gets_the_time_to_show_what_it_does() -> None:
    starving = looks("w" * 60, desired=2)
    assert decide([*starving, *looks("w" * 30, desired=3, start=60.0)], BOUNDS) == 3
    assert decide([*starving, *looks("w" * 31, desired=3, start=60.0)], BOUNDS) == 4


def test_no_more_are_asked_for_while_one_is_on_its_way_which_is_called_off_when_nobody_needs_it() -> None:
    assert decide(looks("w" * 200, desired=3, num_serving=2), BOUNDS) == 3
    assert decide(looks("-" * 200, desired=3, num_serving=2), BOUNDS) == 2
    assert decide(looks("-" * 200, desired=2, num_serving=1), BOUNDS) == 1


def test_the_bounds_hold() -> None:
    assert decide(looks("w" * 100, desired=4), BOUNDS) == 4
    assert decide(looks("i" * 200, desired=1), BOUNDS) == 1
    assert decide(looks("i" * 200, desired=2), Bounds(smallest=2, largest=4)) == 2
    assert decide(looks("-", desired=6), BOUNDS) == 4
    assert decide(looks("-", desired=1), Bounds(smallest=2, largest=4)) == 2


def test_idle_and_busy_in_turns_does_not_swing() -> None:
    desired, seen = 2, list[PoolObservation]()
    for second in range(1200):
        seen += looks("w" if second // 10 % 2 else "i", desired=desired, start=float(second))
        desired = decide(seen, Bounds(smallest=1, largest=3))
        assert desired >= 2
    assert desired == 3
