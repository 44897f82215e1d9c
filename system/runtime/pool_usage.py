"""How busy the workers of a pool were over a step, and how long its calls took. Kept by worker_pool.py."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from system.metrics import MetricSet
from system.runtime.clock import now
from system.runtime.pool_member import PoolMember, WorkerState

_MAX_LATENCIES = 65_536  # the newest, where nobody asks for them


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """One step of a pool. None: nobody served, or no call was answered."""

    busy_fraction: float | None  # worker-seconds with at least one call / worker-seconds serving
    load_fraction: float | None  # mean load of a serving worker over the most that it holds; None also: any
    call_p50_seconds: float | None  # from the request to the answer, with the wait for a worker
    call_p99_seconds: float | None


class PoolUsage:
    """Integrates what the workers do from change to change; a step is what lies between two calls of `take`."""

    def __init__(self, *, max_load: int | None, clock: Callable[[], float] = now) -> None:
        self._max_load = max_load
        self._clock = clock
        self._since = clock()
        self._num_serving = self._num_busy = self._load = 0
        self._latencies: deque[float] = deque(maxlen=_MAX_LATENCIES)
        self._clear()

    def note(self, members: Iterable[PoolMember]) -> None:
        """The members are so from now on. A worker that drains serves as long as it has calls."""
        self._advance()
        self._num_serving = self._num_busy = self._load = 0
        for member in members:
            is_busy = member.num_calls > 0
            if member.state is WorkerState.SERVING or (member.state is WorkerState.DRAINING and is_busy):
                self._num_serving += 1
                self._num_busy += is_busy
                self._load += member.load

    def note_answer(self, *, seconds: float) -> None:
        """A call was answered, so long after it was made."""
        self._latencies.append(seconds)

    def take(self) -> PoolUse:
        """What was since the last call."""
        self._advance()
        latencies = sorted(self._latencies)
        serving = self._serving_seconds
        room = serving * self._max_load if self._max_load else 0.0
        use = PoolUse(
            busy_fraction=self._busy_seconds / serving if serving else None,
            load_fraction=self._load_seconds / room if room else None,
            call_p50_seconds=percentile(latencies, 0.5) if latencies else None,
            call_p99_seconds=percentile(latencies, 0.99) if latencies else None,
        )
        self._clear()
        return use

    def add_to(self, metrics: MetricSet, *, area: str) -> None:
        """What was since the last call, as metrics of `area`."""
        use = self.take()
        for name in ("busy_fraction", "load_fraction", "call_p50_seconds", "call_p99_seconds"):
            value = getattr(use, name)
            if value is not None:
                metrics.add(f"{area}/{name}", value)

    def _advance(self) -> None:
        time = self._clock()
        seconds, self._since = time - self._since, time
        self._serving_seconds += seconds * self._num_serving
        self._busy_seconds += seconds * self._num_busy
        self._load_seconds += seconds * self._load

    def _clear(self) -> None:
        self._serving_seconds = self._busy_seconds = self._load_seconds = 0.0
        self._latencies.clear()


def percentile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; 0 < share <= 1."""
    return ascending[math.ceil(share * len(ascending)) - 1]
