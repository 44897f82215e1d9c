"""Calls that wait for a worker of a pool: who gets which, and which may share a worker with others.

A call whose worker died is made again. One that lost several workers is suspected of killing them: it then gets a
worker for itself, so that it takes nobody along and nobody is blamed for its deaths. Used by worker_pool.py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """One call of a worker's method. `load` is what it takes of a worker's room, such as sequences."""

    method: str
    arguments: tuple[Any, ...]
    what: str  # for messages
    load: int
    answer: asyncio.Future[Any]
    on_start: Callable[[], None] | None = None  # a worker gets it; again for another attempt
    on_retry: Callable[[str], None] | None = None
    errors: list[str] = field(default_factory=list)  # how its workers died, one an attempt
    is_alone: bool = False  # must not share a worker

    def succeed(self, answer: object) -> None:
        """Ignored where the caller no longer waits."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: BaseException) -> None:
        """Ignored where the caller no longer waits."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Host(Protocol):
    """What the queue looks at of a worker."""

    load: int
    is_reserved: bool  # for a call that must be alone


class CallQueue:
    """First come, first served, as long as a worker has room; an empty worker takes a call of any load."""

    def __init__(self, *, max_load: int | None, max_calls_at_once: int = 1) -> None:
        """`max_load` None: a worker takes as many as come. `max_calls_at_once` go to a worker as one."""
        self._max_load = max_load
        self._max_calls_at_once = max_calls_at_once
        self._waiting: deque[Call] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, call: Call) -> None:
        self._waiting.append(call)

    def add_first(self, call: Call) -> None:
        """For a call that has waited already."""
        self._waiting.appendleft(call)

    def take_all(self) -> list[Call]:
        """Nobody will answer these."""
        calls = list(self._waiting)
        self._waiting.clear()
        return calls

    def take(self, hosts: Sequence[Host]) -> tuple[int, list[Call]] | None:
        """The next calls to be made together and the index of the host that takes them; None: none fits now."""
        self._waiting = deque(call for call in self._waiting if not call.answer.done())
        order = sorted(range(len(hosts)), key=lambda index: hosts[index].load)
        least = next((index for index in order if not hosts[index].is_reserved), None)
        if least is None:
            return None
        host = hosts[least]
        if host.load == 0:
            for call in self._waiting:
                if call.is_alone:
                    self._waiting.remove(call)
                    return least, [call]
        taken: list[Call] = []
        for call in list(self._waiting):
            if call.is_alone:
                continue
            if taken and (call.method != taken[0].method or len(taken) == self._max_calls_at_once):
                break
            if not taken and not self._has_room(host, call):
                break
            self._waiting.remove(call)
            taken.append(call)
        return (least, taken) if taken else None

    def _has_room(self, host: Host, call: Call) -> bool:
        return self._max_load is None or host.load == 0 or host.load + call.load <= self._max_load
