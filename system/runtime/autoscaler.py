"""How many workers a pool should have, from what was seen of it: a pure function of the last observations.

    calls wait in the pool, and the learner waits for a batch   -> it starves
    no call waits, and fewer workers would not even be half full -> it has one to spare

| decision | when                                                                                  |
|----------|---------------------------------------------------------------------------------------|
| up by 1  | it starved for at least half of the last UP_SECONDS                                    |
| down by 1| it had one to spare for at least nine tenths of the last DOWN_SECONDS                  |
| none     | less than that was seen since the last change; no more while one is still on its way   |

Between the two lies a wide band where nothing changes, and an observation before the last change does not count: that
is the cool-down, and it gives each change the time to show what it does. Shares of a window, and not unbroken
stretches, because in a synchronous run the two take turns within every update. Called by control_loop.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

UP_SECONDS = 30.0
DOWN_SECONDS = 120.0
_STARVING_SHARE = 0.5
_SPARE_SHARE = 0.9
_SPARE_LOAD_SHARE = 0.5  # of the room that is left without one worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    smallest: int
    largest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolObservation:
    """One look at a pool. `load` and `room_of_worker` in the unit of its calls' load."""

    seconds: float  # of a clock
    desired: int
    num_serving: int
    num_waiting: int  # calls that no worker has
    load: int
    room_of_worker: int
    is_learner_waiting: bool

    @property
    def is_starving(self) -> bool:
        return self.is_learner_waiting and self.num_waiting > 0

    @property
    def has_one_to_spare(self) -> bool:
        room = (self.desired - 1) * self.room_of_worker  # one that is still on its way is spared first
        return self.num_waiting == 0 and self.load <= _SPARE_LOAD_SHARE * room


def decide(observations: Sequence[PoolObservation], bounds: Bounds) -> int:
    """The desired number of workers after the last of `observations`, oldest first, at least one."""
    last = observations[-1]
    if not bounds.smallest <= last.desired <= bounds.largest:
        return min(max(bounds.smallest, last.desired), bounds.largest)
    steady = _since_change(observations)
    is_complete = last.num_serving >= last.desired
    can_grow = is_complete and last.desired < bounds.largest
    if can_grow and _share(steady, UP_SECONDS, is_starving=True) >= _STARVING_SHARE:
        return last.desired + 1
    if last.desired > bounds.smallest and _share(steady, DOWN_SECONDS, is_starving=False) >= _SPARE_SHARE:
        return last.desired - 1
    return last.desired


def _since_change(observations: Sequence[PoolObservation]) -> Sequence[PoolObservation]:
    """Those at the end with the workers that there are now."""
    last = observations[-1]
    for index in range(len(observations) - 1, -1, -1):
        each = observations[index]
        if (each.desired, each.num_serving) != (last.desired, last.num_serving):
            return observations[index + 1 :]
    return observations


def _share(observations: Sequence[PoolObservation], seconds: float, *, is_starving: bool) -> float:
    """Share of the looks of the last `seconds` at which it starved, or had one to spare; 0 when less was seen."""
    end = observations[-1].seconds
    if end - observations[0].seconds < seconds:
        return 0.0
    seen = [each for each in observations if each.seconds >= end - seconds]
    return sum(each.is_starving if is_starving else each.has_one_to_spare for each in seen) / len(seen)
