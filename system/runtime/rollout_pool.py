"""The rollout workers as one pool: who may serve, who gets the next group, and what happens when one dies.

    start ──> JOINING ──weights arrive and are checked──> SERVING ──dies, refused or retired──> gone
                                  (weight_sync.py)

Only SERVING workers get work. A worker that dies hands its groups back as WorkerDiedError; the controller
generates them again on another one. A replacement joins through the next weight sync.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import ray
from ray.exceptions import RayActorError

from system.errors import CredenceError, DeadlineError, EngineFailedError
from system.records import CompletionGroup, Prompt, Sampling
from system.runtime.deadlines import within
from system.runtime.placement import ActorHandle, shut_down_actors

# the process is gone, or it lives but its engine does not
WORKER_FAILURES = (RayActorError, EngineFailedError)


class WorkerState(Enum):
    JOINING = "joining"
    SERVING = "serving"
    GONE = "gone"


class WorkerDiedError(CredenceError):
    """The worker that held a group is gone; the group can be generated again elsewhere."""


class PoolExhaustedError(CredenceError):
    """More rollout workers died than rollout.max_restarts allows."""


@dataclass(slots=True, kw_only=True, eq=False)
class RolloutMember:
    """One worker of the pool. `num_ranks` weight-group ranks: its tensor-parallel processes."""

    name: str
    actor: ActorHandle
    num_ranks: int = 1
    state: WorkerState = WorkerState.JOINING
    num_groups: int = 0
    died: asyncio.Event = field(default_factory=asyncio.Event)


class RolloutPool:
    """Owns the rollout actors. `create_actor(name)` makes a new one."""

    def __init__(
        self,
        *,
        create_actor: Callable[[str], ActorHandle],
        start_seconds: float,
        group_seconds: float,
        max_restarts: int,
        kill_actor: Callable[[ActorHandle], None] = ray.kill,
    ) -> None:
        self._create_actor = create_actor
        self._kill_actor = kill_actor
        self._start_seconds = start_seconds
        self._group_seconds = group_seconds
        self._max_restarts = max_restarts
        self._members: list[RolloutMember] = []
        self._names = itertools.count()
        self._changed = asyncio.Event()
        self.num_removed = 0
        self._last_reason = ""

    @property
    def members(self) -> tuple[RolloutMember, ...]:
        """Workers that hold or shall hold weights: JOINING and SERVING."""
        return tuple(self._members)

    @property
    def num_serving(self) -> int:
        return sum(1 for member in self._members if member.state is WorkerState.SERVING)

    @property
    def num_groups_in_flight(self) -> int:
        return sum(member.num_groups for member in self._members)

    async def start_worker(self) -> RolloutMember:
        """Start one engine; it is JOINING until the next weight sync has checked it. Raises WorkerDiedError."""
        name = f"rollout worker {next(self._names)}"
        member = RolloutMember(name=name, actor=self._create_actor(name))
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
        self._wake_waiters()
        return member

    def serve(self, member: RolloutMember) -> None:
        """The member holds the published weights; it may get work."""
        member.state = WorkerState.SERVING
        self._wake_waiters()

    def remove(self, member: RolloutMember, *, reason: str) -> None:
        """Take a dead or refused worker out and count it. Its pending groups fail with WorkerDiedError."""
        if member.state is WorkerState.GONE:
            return
        member.state = WorkerState.GONE
        self._members.remove(member)
        member.died.set()
        self._kill_actor(member.actor)
        self._count_loss(member.name, reason=reason)
        self._wake_waiters()

    async def wait_for_members(self) -> tuple[RolloutMember, ...]:
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
                f"{self.num_removed} rollout workers were lost in this run, more than rollout.max_restarts="
                f"{self._max_restarts}. The last: {self._last_reason}"
            )

    async def generate(self, prompt: Prompt, *, group_id: int, sampling: Sampling) -> CompletionGroup:
        """One group from the serving worker with the fewest groups. Raises WorkerDiedError, DeadlineError."""
        member = await self._least_loaded()
        member.num_groups += 1
        call = member.actor.generate.remote(prompt, group_id, sampling)
        died = asyncio.create_task(member.died.wait())
        try:
            answer = asyncio.ensure_future(
                within(call, who=member.name, what=f"generate group {group_id}", seconds=self._group_seconds)
            )
            await asyncio.wait((answer, died), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                answer.cancel()
                raise WorkerDiedError(f"{member.name} was removed while it generated group {group_id}")
            return answer.result()
        except WORKER_FAILURES as error:
            self.remove(member, reason=str(error))
            raise WorkerDiedError(f"{member.name} died while it generated group {group_id}") from error
        finally:
            died.cancel()
            member.num_groups -= 1

    async def shutdown(self, *, seconds: float) -> None:
        """Let every engine close its processes, then kill what is left. Never raises on a dead worker."""
        members, self._members = self._members, []
        await shut_down_actors([member.actor for member in members], seconds=seconds)

    def _count_loss(self, name: str, *, reason: str) -> None:
        self.num_removed += 1
        self._last_reason = f"{name}: {reason}"

    async def _least_loaded(self) -> RolloutMember:
        while True:
            serving = [member for member in self._members if member.state is WorkerState.SERVING]
            if serving:
                return min(serving, key=lambda member: member.num_groups)
            await self._changed.wait()

    def _wake_waiters(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
