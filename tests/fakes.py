"""Small stand-ins for actors: they hold what the real ones hold, and die or hang when they are told to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayActorError

from system.records import Prompt, Sampling, ScoredGroup, TrajectoryGroup
from system.runtime.pool_member import PoolSettings
from system.runtime.worker_pool import WorkerPool


@dataclass
class Remote:
    """Looks like a Ray method: `.remote(...)` gives an awaitable."""

    call: Callable[..., Awaitable[object]]

    def remote(self, *arguments: object, **named: object) -> Awaitable[object]:
        return self.call(*arguments, **named)

    def options(self, **options: object) -> Remote:
        return self


@dataclass(eq=False)
class FakeActor:
    """A process with methods `on_<name>`. A dead one fails every call, a hung one never answers (SIGSTOP)."""

    is_dead: bool = False
    is_hung: bool = False
    start_error: BaseException | None = None
    was_shut_down: bool = False
    poll_seconds: float = 0.001
    calls: list[str] = field(default_factory=list)

    def __getattr__(self, method: str) -> Remote:
        if method.startswith(("_", "on_")):
            raise AttributeError(method)

        async def call(*arguments: object, **named: object) -> object:
            self.calls.append(method)
            await self._wait_while_hung()
            if self.is_dead:
                raise RayActorError
            answer = await getattr(self, f"on_{method}")(*arguments, **named)
            await self._wait_while_hung()  # a process that died or hung while it worked sends no answer
            if self.is_dead:
                raise RayActorError
            return answer

        return Remote(call)

    async def _wait_while_hung(self) -> None:
        while self.is_hung and not self.is_dead:
            await asyncio.sleep(self.poll_seconds)

    async def on_start(self) -> int:
        if self.start_error is not None:
            raise self.start_error
        return 1

    async def on_shutdown(self) -> None:
        self.was_shut_down = True


@dataclass(eq=False)
class FakeRollout(FakeActor):
    """Generates when its gate is open. A group of `poison` kills it."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    poison: frozenset[int] = frozenset()
    group_ids: list[int] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0
    error: BaseException | None = None

    async def on_generate(self, prompt: Prompt, group_id: int, sampling: Sampling) -> TrajectoryGroup:
        self.group_ids.append(group_id)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        if group_id in self.poison:
            self.is_dead = True
        while not (self.gate.is_set() or self.is_dead):
            await asyncio.sleep(0.001)
        self.num_running -= 1
        if self.error is not None:
            raise self.error
        return TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=())


@dataclass(eq=False)
class FakeReward(FakeActor):
    """Scores batches of groups when its gate is open. A group of `poison` kills it."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    poison: frozenset[int] = frozenset()
    batches: list[list[int]] = field(default_factory=list)

    async def on_score(self, groups: list[tuple[TrajectoryGroup, bool]]) -> list[ScoredGroup]:
        self.batches.append([group.group_id for group, _ in groups])
        await self.gate.wait()
        if self.poison & {group.group_id for group, _ in groups}:
            self.is_dead = True
        return [ScoredGroup(group=group, terms=()) for group, _ in groups]


def opened(actor: Any) -> Any:
    """The fake with its gate open."""
    actor.gate.set()
    return actor


def kill(actor: FakeActor) -> None:
    """In place of ray.kill."""
    actor.is_dead = True


def make_pool(actors: list[Any], *, locate: Any = None, **settings: Any) -> WorkerPool:
    """A pool that creates the given actors one after the other; `settings` replace the defaults below."""
    waiting = list(actors)
    defaults: dict[str, Any] = {
        "kind": "rollout worker",
        "section": "rollout",
        "num_workers": 1,
        "start_seconds": 1.0,
        "call_seconds": 5.0,
        "max_restarts": 3,
    }
    return WorkerPool(
        PoolSettings(**(defaults | settings)),
        create_actor=lambda name: waiting.pop(0),
        kill_actor=kill,
        locate=locate,
    )


async def serve_all(pool: WorkerPool) -> None:
    """Start the pool's workers and let them serve."""
    await pool.start()
    for member in pool.members:
        pool.serve(member)
