"""Workers that hold the policy's weights, as one pool: who may serve, who gets the next call, and what if one dies.

    start ──> JOINING ──weights arrive and are checked──> SERVING ──dies, refused or retired──> gone
                                  (weight_sync.py)

Rollout workers and scoring replicas are such pools. Only SERVING workers get work. A worker that dies hands its
calls back as WorkerDiedError. A replacement joins through the next weight sync.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import ray
from ray.exceptions import RayActorError

from system.errors import CredenceError, DeadlineError, EngineFailedError
from system.runtime.deadlines import within
from system.runtime.placement import ActorHandle, shut_down_actors

_log = logging.getLogger(__name__)

# the process is gone, or it lives but its engine does not
WORKER_FAILURES = (RayActorError, EngineFailedError)


class WorkerState(Enum):
    JOINING = "joining"
    SERVING = "serving"
    GONE = "gone"


class WorkerDiedError(CredenceError):
    """The worker that held a call is gone; the call can be made again elsewhere."""


class PoolExhaustedError(CredenceError):
    """More workers died than the configuration allows."""


@dataclass(slots=True, kw_only=True, eq=False)
class PoolMember:
    """One worker of a pool. `num_ranks` weight-group ranks: its tensor-parallel processes."""

    name: str
    actor: ActorHandle
    pool: WorkerPool
    num_ranks: int = 1
    state: WorkerState = WorkerState.JOINING
    num_calls: int = 0
    died: asyncio.Event = field(default_factory=asyncio.Event)


class WorkerPool:
    """Owns the actors of one kind. `create_actor(name)` makes a new one; `kind` and `section` are for messages."""

    kind: str
    section: str  # of the configuration
    max_calls_per_worker: int | None = None  # None: a worker takes as many as come
    is_exclusive: bool = False  # a worker cannot receive weights while it answers a call

    def __init__(
        self,
        *,
        create_actor: Callable[[str], ActorHandle],
        start_seconds: float,
        group_seconds: float,
        max_restarts: int,
        receives_weights: bool = True,
        kill_actor: Callable[[ActorHandle], None] = ray.kill,
    ) -> None:
        """Without `receives_weights` a worker serves the weights it has loaded as soon as it has started."""
        self._create_actor = create_actor
        self._kill_actor = kill_actor
        self._start_seconds = start_seconds
        self._group_seconds = group_seconds
        self._max_restarts = max_restarts
        self._members: list[PoolMember] = []
        self._names = itertools.count()
        self._changed = asyncio.Event()
        self._is_held = False
        self.receives_weights = receives_weights
        self.num_removed = 0
        self._last_reason = ""

    @property
    def members(self) -> tuple[PoolMember, ...]:
        """Workers that hold or shall hold weights: JOINING and SERVING."""
        return tuple(self._members)

    @property
    def num_serving(self) -> int:
        return sum(1 for member in self._members if member.state is WorkerState.SERVING)

    @property
    def num_calls_in_flight(self) -> int:
        return sum(member.num_calls for member in self._members)

    async def start_worker(self) -> PoolMember:
        """Start one; it is JOINING until the next weight sync has checked it. Raises WorkerDiedError."""
        name = f"{self.kind} {next(self._names)}"
        member = PoolMember(name=name, actor=self._create_actor(name), pool=self)
        try:
            member.num_ranks = await within(
                member.actor.start.remote(), who=name, what="start", seconds=self._start_seconds
            )
        except (*WORKER_FAILURES, DeadlineError) as error:
            self._kill_actor(member.actor)
            self._count_loss(name, reason=str(error))
            raise WorkerDiedError(f"{name} did not start: {error}") from error
        except BaseException:
            self._kill_actor(member.actor)
            raise
        self._members.append(member)
        if not self.receives_weights:
            member.state = WorkerState.SERVING
        self._wake_waiters()
        return member

    def serve(self, member: PoolMember) -> None:
        """The member holds the published weights; it may get work."""
        member.state = WorkerState.SERVING
        self._wake_waiters()

    def remove(self, member: PoolMember, *, reason: str) -> None:
        """Take a dead or refused worker out and count it. Its pending calls fail with WorkerDiedError."""
        if member.state is WorkerState.GONE:
            return
        member.state = WorkerState.GONE
        self._members.remove(member)
        member.died.set()
        self._kill_actor(member.actor)
        self._count_loss(member.name, reason=reason)
        self._wake_waiters()

    async def wait_for_members(self) -> tuple[PoolMember, ...]:
        """All workers that can receive weights, as soon as there is one."""
        while not self._members:
            await self._changed.wait()
        return self.members

    async def wait_for_shortage(self, num_workers: int) -> None:
        """Returns once fewer than `num_workers` are left. Raises PoolExhaustedError when too many were lost."""
        while len(self._members) >= num_workers:
            await self._changed.wait()
        if self.num_removed > self._max_restarts:
            raise PoolExhaustedError(
                f"{self.num_removed} {self.kind}s were lost in this run, more than {self.section}.max_restarts="
                f"{self._max_restarts}. The last: {self._last_reason}"
            )

    async def replace_loop(
        self, num_workers: int, *, admit: Callable[[PoolMember], Awaitable[None]] | None = None
    ) -> None:
        """Keep `num_workers` alive. Raises PoolExhaustedError when too many die.

        `admit` brings a new worker that receives weights to where it may serve; None: it serves what it has loaded.
        """
        while True:
            await self.wait_for_shortage(num_workers)
            try:
                member = await self.start_worker()
            except WorkerDiedError as error:
                _log.warning("%s; another one is started", error)
                continue
            if admit is not None:
                await admit(member)
            _log.warning("%s has joined and serves", member.name)

    async def hold(self) -> None:
        """Give out no calls until `release`, and wait for those in flight: the weights are about to change."""
        self._is_held = True
        while self.num_calls_in_flight:
            await self._changed.wait()

    def release(self) -> None:
        self._is_held = False
        self._wake_waiters()

    async def _call(self, method: str, *arguments: Any, what: str) -> Any:
        """The answer of the serving worker with the fewest calls. Raises WorkerDiedError, DeadlineError."""
        member = await self._least_loaded()
        member.num_calls += 1
        call = getattr(member.actor, method).remote(*arguments)
        died = asyncio.create_task(member.died.wait())
        answer = asyncio.ensure_future(within(call, who=member.name, what=what, seconds=self._group_seconds))
        try:
            await asyncio.wait((answer, died), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise WorkerDiedError(f"{member.name} was removed during '{what}'")
            return answer.result()
        except WORKER_FAILURES as error:
            self.remove(member, reason=str(error))
            raise WorkerDiedError(f"{member.name} died during '{what}'") from error
        finally:
            died.cancel()
            answer.cancel()  # else asyncio prints a traceback for the error of a call that nobody waits for any more
            member.num_calls -= 1
            if self._is_held or self.max_calls_per_worker is not None:
                self._wake_waiters()

    async def shutdown(self, *, seconds: float) -> None:
        """Let every engine close its processes, then kill what is left. Never raises on a dead worker."""
        members, self._members = self._members, []
        await shut_down_actors([member.actor for member in members], seconds=seconds)

    def _count_loss(self, name: str, *, reason: str) -> None:
        self.num_removed += 1
        self._last_reason = f"{name}: {reason}"

    async def _least_loaded(self) -> PoolMember:
        while True:
            free = [member for member in self._members if self._takes_calls(member)]
            if free:
                return min(free, key=lambda member: member.num_calls)
            await self._changed.wait()

    def _takes_calls(self, member: PoolMember) -> bool:
        if self._is_held or member.state is not WorkerState.SERVING:
            return False
        return self.max_calls_per_worker is None or member.num_calls < self.max_calls_per_worker

    def _wake_waiters(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
