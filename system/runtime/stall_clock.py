"""When a stage of a run has stood still for too long. Pure: the watchdog gives it what it saw, and the time."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StageObservation:
    """What can be seen of a stage at one moment."""

    stage: str
    is_busy: bool  # it has work
    progress: int  # anything that changes when it gets on with it
    is_bounded: bool = False  # it waits for somebody whose deadline is still to come


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A stage that did not get on for `seconds`. The second one of the same standstill is final."""

    stage: str
    seconds: float
    is_final: bool


@dataclass(slots=True, kw_only=True)
class _Watched:
    progress: int
    moved_at: float  # last change
    since: float  # when its patience began to run: the last change, or the last moment at which it was bounded
    num_stalls: int = 0


class StallClock:
    """A stall is told after `stall_seconds` without progress, and a final one after twice as long."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._watched: dict[str, _Watched] = {}

    def observe(self, observations: Sequence[StageObservation], *, now: float) -> list[Stall]:
        """The stalls that have come to pass since the last call. Stages that are not named are forgotten."""
        named = {each.stage for each in observations if each.is_busy}
        self._watched = {stage: watched for stage, watched in self._watched.items() if stage in named}
        stalls = []
        for each in observations:
            if each.is_busy:
                stall = self._observe_busy(each, now=now)
                stalls += [] if stall is None else [stall]
        return stalls

    def _observe_busy(self, observation: StageObservation, *, now: float) -> Stall | None:
        stage, progress = observation.stage, observation.progress
        watched = self._watched.get(stage)
        if watched is None or watched.progress != progress:
            self._watched[stage] = _Watched(progress=progress, moved_at=now, since=now)
            return None
        if observation.is_bounded:
            watched.since = now
            watched.num_stalls = 0
            return None
        if now - watched.since < (watched.num_stalls + 1) * self._stall_seconds or watched.num_stalls == 2:
            return None
        watched.num_stalls += 1
        return Stall(stage=stage, seconds=now - watched.moved_at, is_final=watched.num_stalls == 2)
