"""Brings one worker of a pool from its creation to where it serves. Used by worker_pool.py.

It waits for its node as long as that takes, and says so; then its deadline runs. A worker that the cluster has no room
for is not late: Ray shows it as demand, so that an autoscaler adds a node, and it starts there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayError

from system.errors import CredenceError, DeadlineError, EngineFailedError
from system.runtime.actor_nodes import Locate, resources_text
from system.runtime.deadlines import within
from system.runtime.pool_member import PoolMember, WorkerState
from system.runtime.worker_failures import WORKER_FAILURES, WorkerDiedError, is_worker_failure

_log = logging.getLogger(__name__)

NOTICE_SECONDS = 10.0  # until a wait for a node is spoken of: a process takes a moment to start where there is room
_MAX_PAUSE_SECONDS = 1.0  # between two looks
_HOPELESS_SECONDS = 1800.0  # of starts that took too long, while none ever came to an end

Admit = Callable[[PoolMember], Awaitable[None]]


class WorkerStarts:
    """The starts of one pool, which it tells who is lost and who serves."""

    def __init__(self, *, locate: Locate | None) -> None:
        self._locate = locate
        self._has_started = False  # any worker, ever
        self._late_seconds = 0.0  # that were waited for workers in vain

    async def first(self, member: PoolMember) -> None:
        """One that dies or hangs is left to the pool's `supervise`; raises WorkerDiedError when it refuses to start."""
        try:
            await self._start(member, is_replacement=False)
        except WorkerDiedError as error:
            if not isinstance(error.__cause__, RayError | DeadlineError):
                raise

    async def bring_up(self, member: PoolMember, admit: Admit | None) -> None:
        """A replacement from its creation to SERVING; when it dies on the way, `supervise` starts another."""
        pool = member.pool
        try:
            await self._start(member, is_replacement=True)
            if admit is not None and member.state is WorkerState.JOINING:
                await within(admit(member), who=member.name, what="join", seconds=pool.settings.start_seconds)
        except WorkerDiedError as error:
            is_hopeless = isinstance(error.__cause__, EngineFailedError) or self._late_seconds > _HOPELESS_SECONDS
            if is_hopeless and not self._has_started:
                raise  # it is not worth max_restarts deadlines
            return  # counted where it was noticed
        except WORKER_FAILURES as error:
            if not is_worker_failure(error):
                raise
            pool.remove(member, reason=f"it did not join: {error}")
        if member.state is WorkerState.SERVING:
            _log.warning("%s has joined and serves", member.name)

    async def _start(self, member: PoolMember, *, is_replacement: bool) -> None:
        """STARTING to JOINING, or to SERVING where no weights are received. Raises WorkerDiedError."""
        pool = member.pool
        try:
            num_ranks = await start_worker(member, locate=self._locate)
        except (RayError, CredenceError) as error:
            self._late_seconds += pool.settings.start_seconds if isinstance(error, DeadlineError) else 0.0
            pool.remove(member, reason=f"it did not start: {error}")
            if not is_replacement and not is_worker_failure(error):
                raise  # the configuration is at fault: its own message says more
            raise WorkerDiedError(f"{member.name} did not start: {error}") from error
        except asyncio.CancelledError:
            pool.discard(member)
            raise
        if member.state is WorkerState.STARTING:
            self._has_started = True
            member.num_ranks = num_ranks or 0
            member.state = WorkerState.JOINING
            if not pool.settings.receives_weights:
                pool.serve(member)


async def start_worker(member: PoolMember, *, locate: Locate | None) -> Any:
    """What the worker's `start` returns. Raises what it raises, DeadlineError when it is late on its node.

    `locate` None: nobody knows about nodes, and the deadline runs at once.
    """
    answer: asyncio.Future[Any] = asyncio.ensure_future(member.actor.start.remote())
    try:
        if locate is not None:
            await _wait_for_node(member, answer, locate=locate)
        return await within(answer, who=member.name, what="start", seconds=member.pool.settings.start_seconds)
    finally:
        member.waits_for = None
        answer.cancel()


async def _wait_for_node(member: PoolMember, answer: asyncio.Future[Any], *, locate: Locate) -> None:
    """Returns when the worker has a node, or has answered or died without."""
    loop = asyncio.get_running_loop()
    resources = member.pool.settings.resources
    start, pause = loop.time(), 0.1
    while True:
        is_over = answer.done()
        location = await locate(member.actor, resources)
        if location.node is not None or is_over:
            break
        if location.reason and loop.time() - start >= NOTICE_SECONDS:
            if member.waits_for is None:
                _log.warning("%s waits for %s: %s", member.name, resources_text(resources), location.reason)
            member.waits_for = f"{resources_text(resources)}: {location.reason}"
        await asyncio.wait((answer,), timeout=pause)
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)
    if location.node is not None:
        member.node = location.node
        if member.waits_for is not None:
            _log.warning("%s has a node, %s, after %.0f s", member.name, location.node.address, loop.time() - start)
    member.waits_for = None
