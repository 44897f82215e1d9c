"""The reward workers as one pool with one queue: a free worker takes all groups that wait, up to a bound.

| loop         | waits for      | who wakes it |
|--------------|----------------|--------------|
| worker loops | a queued group | `score`      |

A call to an actor costs more than a check, so groups that finished together are scored together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import ray
from ray.exceptions import RayActorError

from system.errors import CredenceError
from system.records import CompletionGroup, ScoredGroup
from system.runtime.deadlines import all_within, within
from system.runtime.placement import ActorHandle, shut_down_actors

_MAX_GROUPS_PER_CALL = 16
_MAX_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    group: CompletionGroup
    with_hypotheses: bool
    answer: asyncio.Future[ScoredGroup]
    attempt: int


class RewardPool:
    """Owns the reward actors. Groups of a worker that died are scored again by another, at most three times."""

    def __init__(
        self, *, create_actor: Callable[[], ActorHandle], num_workers: int, start_seconds: float, group_seconds: float
    ) -> None:
        self._create_actor = create_actor
        self._num_workers = num_workers
        self._start_seconds = start_seconds
        self._group_seconds = group_seconds
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._actors: list[ActorHandle] = []
        self._loops: list[asyncio.Task[None]] = []
        self.num_restarts = 0

    @property
    def num_waiting(self) -> int:
        return self._queue.qsize()

    async def start(self) -> None:
        self._actors = [self._create_actor() for _ in range(self._num_workers)]
        await all_within(
            {f"reward worker {index}": actor.start.remote() for index, actor in enumerate(self._actors)},
            what="start",
            seconds=self._start_seconds,
        )
        self._loops = [asyncio.create_task(self._worker_loop(index)) for index in range(self._num_workers)]

    async def score(self, group: CompletionGroup, *, with_hypotheses: bool = False) -> ScoredGroup:
        """The group with a RewardTerm of each scorer for each completion, and with hypotheses for its beliefs.

        Raises DeadlineError.
        """
        answer: asyncio.Future[ScoredGroup] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Waiting(group=group, with_hypotheses=with_hypotheses, answer=answer, attempt=1))
        return await answer

    async def shutdown(self, *, seconds: float) -> None:
        """Let the workers close their verifier processes, then kill what is left."""
        for loop in self._loops:
            loop.cancel()
        await shut_down_actors(self._actors, seconds=seconds)

    async def _worker_loop(self, index: int) -> None:
        while True:
            waiting = [await self._queue.get()]
            while len(waiting) < _MAX_GROUPS_PER_CALL and not self._queue.empty():
                waiting.append(self._queue.get_nowait())
            try:
                scored = await within(
                    self._actors[index].score.remote([(each.group, each.with_hypotheses) for each in waiting]),
                    who=f"reward worker {index}",
                    what=f"score {len(waiting)} groups",
                    seconds=self._group_seconds * len(waiting),
                )
            except RayActorError as error:
                self._actors[index] = self._create_actor()
                self.num_restarts += 1
                self._requeue(waiting, error=error)
            except (CredenceError, ray.exceptions.RayTaskError) as error:
                for each in waiting:
                    if not each.answer.done():
                        each.answer.set_exception(error)
            else:
                for each, group in zip(waiting, scored, strict=True):
                    if not each.answer.done():
                        each.answer.set_result(group)

    def _requeue(self, waiting: list[_Waiting], *, error: RayActorError) -> None:
        for each in waiting:
            if each.attempt < _MAX_ATTEMPTS:
                self._queue.put_nowait(replace(each, attempt=each.attempt + 1))
            elif not each.answer.done():
                each.answer.set_exception(error)
