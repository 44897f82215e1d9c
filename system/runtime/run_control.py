"""The mailbox of a run: a small actor that others on the cluster talk to, so that nobody interrupts the controller.

    credence scale   ─ scale(request) ──▶ ┌────────────┐ ◀── next_requests ─ controller (control_loop.py)
                     ◀── ScaleAnswer ──── │ RunControl │ ◀── answer ────────
    credence status  ─ status() ────────▶ └────────────┘ ◀── push_status ───  about once a second

It reserves nothing and dies with the driver that created it. Made an actor in run_mailbox.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from system.runtime.run_status import RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRequest:
    """`workers` wanted, by section: {"rollout": 4}. `now`: do not wait for the calls of those that go."""

    workers: Mapping[str, int]
    now: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleChange:
    """What a request does to one pool."""

    section: str
    kind: str  # of worker
    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleAnswer:
    """All of a request is done, or nothing of it with the reason."""

    changes: tuple[ScaleChange, ...] = ()
    refusal: str | None = None


class RunControl:
    """Holds the newest status, and each request until the controller has answered it. One event loop, no lock."""

    def __init__(self) -> None:
        self._status: RunStatus | None = None
        self._numbers = itertools.count()
        self._requests: list[tuple[int, ScaleRequest]] = []
        self._answers: dict[int, asyncio.Future[ScaleAnswer]] = {}
        self._arrived = asyncio.Event()

    async def scale(self, request: ScaleRequest) -> ScaleAnswer:
        """The controller's answer."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._requests.append((number, request))
        self._arrived.set()
        try:
            return await answer
        finally:
            del self._answers[number]

    async def status(self) -> RunStatus | None:
        """What the controller said last; None before it said anything."""
        return self._status

    async def next_requests(self, seconds: float) -> list[tuple[int, ScaleRequest]]:
        """For the controller: requests with their numbers as soon as there are any; none after `seconds`."""
        try:
            await asyncio.wait_for(self._arrived.wait(), seconds)
        except TimeoutError:
            return []
        self._arrived.clear()
        requests, self._requests = self._requests, []
        return requests

    async def answer(self, number: int, answer: ScaleAnswer) -> None:
        """Ignored where nobody waits for it any more."""
        waiting = self._answers.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def push_status(self, status: RunStatus) -> None:
        self._status = status
