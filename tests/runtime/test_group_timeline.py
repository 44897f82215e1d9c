"""A wait is shared out over the stages that the missing groups were in; the timelines below are literal."""

import math

import pytest

from system.runtime.group_timeline import Attribution, GroupStage, GroupTimeline, Stay, attribute_wait


def stays(*parts: tuple[GroupStage, float, float]) -> list[Stay]:
    return [Stay(stage=stage, start=start, end=end) for stage, start, end in parts]


def seconds_of(attribution: Attribution) -> tuple[float, float, float]:
    return tuple(attribution.seconds[stage] for stage in ("worker", "generation", "scoring"))  # type: ignore[return-value]


def test_a_wait_is_shared_equally_by_the_groups_that_are_missing() -> None:
    wanted = [
        stays(("worker", 0, 1), ("generation", 1, 4), ("scoring", 4, 5)),
        stays(("worker", 0, 2), ("generation", 2, 9), ("scoring", 9, 12)),
    ]
    attribution = attribute_wait(wanted, replaced=[], start=0, end=12)
    # 0-1 both wait for a worker; 1-2 one each; 2-4 both generate; 4-5 scoring and generation; then the last alone
    assert seconds_of(attribution) == (1 + 0.5, 0.5 + 2 + 0.5 + 4, 0.5 + 3)
    assert attribution.straggler_seconds == 7


def test_only_the_time_of_the_wait_counts() -> None:
    wanted = [stays(("worker", 0, 1), ("generation", 1, 8), ("scoring", 8, 12))]
    assert seconds_of(attribute_wait(wanted, replaced=[], start=6, end=9)) == (0, 2, 1)
    assert attribute_wait(wanted, replaced=[], start=6, end=9).straggler_seconds == 0  # a batch of one has none


def test_what_is_ready_waits_for_nobody() -> None:
    wanted = [stays(("generation", 0, 3)), stays(("generation", 0, 1), ("scoring", 1, 2))]
    assert seconds_of(attribute_wait(wanted, replaced=[], start=0, end=5)) == (0, 1 + 0.5 + 1, 0.5)


def test_a_dropped_group_stands_for_the_one_that_was_leased_in_its_place() -> None:
    wanted = [stays(("generation", 0, 2)), stays(("generation", 10, 14))]
    replaced = [stays(("generation", 0, 4), ("scoring", 4, 10))]
    assert seconds_of(attribute_wait(wanted, replaced=replaced, start=0, end=14)) == (0, 8, 6)
    # two that were dropped stand for the only one of the batch that is not leased yet
    both = [*replaced, stays(("scoring", 0, 10))]
    attribution = attribute_wait(wanted, replaced=both, start=0, end=14)
    assert seconds_of(attribution) == pytest.approx((0, 2 * 0.75 + 2 * 0.5 + 4, 2 * 0.25 + 2 * 0.5 + 6))
    assert attribution.straggler_seconds == 12


def test_a_dropped_group_beside_a_whole_batch_counts_for_nothing() -> None:
    wanted = [stays(("generation", 0, 6))]
    replaced = [stays(("scoring", 0, 6))]
    assert seconds_of(attribute_wait(wanted, replaced=replaced, start=0, end=6)) == (0, 6, 0)


def test_time_in_which_nothing_of_the_batch_is_in_flight_stays_unattributed() -> None:
    wanted = [stays(("generation", 3, 5))]
    assert seconds_of(attribute_wait(wanted, replaced=[], start=0, end=7)) == (0, 2, 0)


def test_a_timeline_follows_the_clock_and_forgets_what_has_ended() -> None:
    time = 0.0
    timeline = GroupTimeline(clock=lambda: time)
    for time, group_id, stage in (  # noqa: B007  the clock reads it
        (0.0, 1, "worker"),
        (1.0, 1, "generation"),
        (2.0, 2, "worker"),
        (4.0, 1, "worker"),  # its worker died
        (5.0, 1, "generation"),
        (7.0, 1, "scoring"),
        (8.0, 1, None),
    ):
        timeline.enter(group_id, stage)  # type: ignore[arg-type]
    time = 9.0
    timeline.end(2, is_trained=False)
    assert seconds_of(timeline.attribute([1], start=0, end=9)) == (2, 5, 1)
    timeline.end(1, is_trained=True)
    assert seconds_of(timeline.attribute([1, 2], start=0, end=9)) == (0, 0, 0)


def test_an_open_stay_ends_with_the_wait() -> None:
    assert seconds_of(attribute_wait([stays(("scoring", 1, math.inf))], replaced=[], start=0, end=3)) == (0, 0, 2)
