"""When a stage counts as standing still, with literal times."""

from system.runtime.stall_clock import StageObservation, Stall, StallClock


def seen(progress: int, *, is_busy: bool = True, is_bounded: bool = False, stage: str = "generate") -> StageObservation:
    return StageObservation(stage=stage, is_busy=is_busy, progress=progress, is_bounded=is_bounded)


def test_a_stage_without_progress_is_told_once_and_at_twice_the_time_for_good() -> None:
    clock = StallClock(10.0)
    stalls = [clock.observe([seen(4)], now=float(now)) for now in range(0, 50, 5)]
    assert stalls == [
        [], [], [Stall(stage="generate", seconds=10.0, is_final=False)],
        [], [Stall(stage="generate", seconds=20.0, is_final=True)], [], [], [], [], [],
    ]  # fmt: skip


def test_progress_starts_the_clock_anew() -> None:
    clock = StallClock(10.0)
    assert clock.observe([seen(4)], now=0.0) == []
    assert clock.observe([seen(5)], now=9.0) == []
    assert clock.observe([seen(5)], now=18.9) == []
    assert clock.observe([seen(5)], now=19.0) == [Stall(stage="generate", seconds=10.0, is_final=False)]
    assert clock.observe([seen(6)], now=20.0) == []
    assert clock.observe([seen(6)], now=30.0) == [Stall(stage="generate", seconds=10.0, is_final=False)]


def test_a_stage_without_work_does_not_stand_still() -> None:
    clock = StallClock(10.0)
    clock.observe([seen(4)], now=0.0)
    clock.observe([seen(4, is_busy=False)], now=5.0)
    assert clock.observe([seen(4)], now=100.0) == []
    assert clock.observe([], now=105.0) == []
    assert clock.observe([seen(4)], now=111.0) == []


def test_a_deadline_to_come_acts_before_the_watchdog() -> None:
    clock = StallClock(10.0)
    for now in range(0, 600, 5):
        assert clock.observe([seen(4, is_bounded=True)], now=float(now)) == []
    assert clock.observe([seen(4)], now=604.0) == []
    # the time since the last progress is what is told
    assert clock.observe([seen(4)], now=605.0) == [Stall(stage="generate", seconds=605.0, is_final=False)]


def test_each_stage_has_a_clock_of_its_own() -> None:
    clock = StallClock(10.0)
    for now in range(0, 10, 5):
        clock.observe([seen(0, stage="score"), seen(now, stage="lease")], now=float(now))
    stalls = clock.observe([seen(0, stage="score"), seen(10, stage="lease")], now=10.0)
    assert [stall.stage for stall in stalls] == ["score"]
