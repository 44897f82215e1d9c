"""The waits of a run that have a deadline of their own, as deadlines.py tells of them. Read by the watchdog.

A wait is "in time" until its deadline: so long it is for its own deadline to act, and not for the watchdog.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

# the actor classes behind each kind of worker, as Ray names their processes
ACTORS = {
    "rollout worker": "RolloutWorker",
    "reward worker": "RewardWorker",
    "scoring replica": "ScoringWorker",
    "learner rank": "LearnerWorker",
}

BeforeGivingUp = Callable[[Sequence[str], str, float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWait:
    """`names`: who is waited for, such as "rollout worker 3"."""

    names: tuple[str, ...]
    what: str
    seconds: float
    began: float

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(kind_of(name) for name in self.names)


class OpenWaits:
    """Implements deadlines.WaitObserver; one event loop, no lock."""

    def __init__(
        self, *, before_giving_up: BeforeGivingUp | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._before_giving_up = before_giving_up
        self._clock = clock
        self._waits: dict[int, OpenWait] = {}
        self._last = 0
        self._num_ended: Counter[str] = Counter()

    def begin(self, names: Sequence[str], *, what: str, seconds: float) -> int:
        self._last += 1
        self._waits[self._last] = OpenWait(names=tuple(names), what=what, seconds=seconds, began=self._clock())
        return self._last

    def end(self, wait: int) -> None:
        self._num_ended.update(self._waits.pop(wait).kinds)

    async def before_giving_up(self, late: Sequence[str], *, what: str, seconds: float) -> None:
        if self._before_giving_up is not None:
            await self._before_giving_up(late, what, seconds)

    def num_ended(self, kinds: frozenset[str] | None) -> int:
        """Waits for these kinds (None: any) that came to an end, so or so: something went on."""
        return sum(count for kind, count in self._num_ended.items() if kinds is None or kind in kinds)

    def are_in_time(self, kinds: frozenset[str] | None) -> bool:
        """Whether a wait for one of these kinds (None: any) is open whose deadline is still to come."""
        now = self._clock()
        return any(
            now < wait.began + wait.seconds
            for wait in self._waits.values()
            if kinds is None or not kinds.isdisjoint(wait.kinds)
        )

    def describe(self) -> list[str]:
        """One line for each, the longest wait first."""
        now = self._clock()
        return [
            f"{now - wait.began:.1f} s of {wait.seconds:g} s for {', '.join(wait.names)}: {wait.what}"
            for wait in sorted(self._waits.values(), key=lambda wait: wait.began)
        ]


def kind_of(name: str) -> str:
    """The kind of a worker of that name: "rollout worker 3" is a "rollout worker"; others are a kind of their own."""
    return next((kind for kind in ACTORS if name.startswith(kind)), name)
