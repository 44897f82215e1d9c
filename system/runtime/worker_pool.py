"""Workers of one kind as a pool: how many there are, who may serve, who gets the next call, and what if one dies.

    create ─> STARTING ─> JOINING ─admitted─> SERVING ─resize─> DRAINING ─last call answered, or `now`─> GONE
                 └────────────┴─ dies, hangs, is refused ─┴──────────┴──────────────────────────> GONE, counted

Rollout workers, scoring replicas and reward workers are such pools. Only SERVING workers get calls. A worker without
weights to receive serves as soon as it has started; the others are JOINING until `admit` has checked their weights.

| loop      | waits for                                  | who unblocks it                            |
|-----------|--------------------------------------------|--------------------------------------------|
| supervise | a shortage or a surplus of workers         | `remove`, `resize`                         |
| bring-up  | the worker's start, then `admit`           | the worker, or its deadline                |
| a call    | a serving worker with room, then an answer | `serve`, an answer, or the call's deadline |

A call's deadline begins when a worker gets it. While it waits for a worker, it is bounded by what the pool may still
try: max_restarts replacements, each with a deadline to start and to join; then everything that waits fails.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import ray

from system.runtime.actor_nodes import Locate
from system.runtime.call_queue import Call, CallQueue
from system.runtime.clock import now
from system.runtime.deadlines import within
from system.runtime.placement import ActorHandle, shut_down_actors
from system.runtime.pool_losses import PoolLosses
from system.runtime.pool_member import PoolMember, PoolSettings, WorkerState, least_useful
from system.runtime.pool_usage import PoolUsage
from system.runtime.worker_failures import PoisonedCallError, WorkerDiedError, is_worker_failure
from system.runtime.worker_start import Admit, WorkerStarts

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # of a call, each on another worker
_RETIRE_SECONDS = 10.0  # for a drained worker to end its processes


class WorkerPool:
    """Owns the actors of one kind. `create_actor(name)` makes a new one; one event loop, no lock.

    With `locate` the deadline of a start begins when the worker has a node. `desired`: how many there shall be.
    """

    def __init__(
        self,
        settings: PoolSettings,
        *,
        create_actor: Callable[[str], ActorHandle],
        kill_actor: Callable[[ActorHandle], None] = ray.kill,
        locate: Locate | None = None,
    ) -> None:
        self.settings = settings
        self._create_actor = create_actor
        self._kill_actor = kill_actor
        self._starts = WorkerStarts(locate=locate)
        self.desired = settings.num_workers
        self._num_proven = self.desired  # so many workers have served at once, or were there from the start
        self.losses = PoolLosses(settings)
        self._workers: list[PoolMember] = []
        self._queue = CallQueue(max_load=settings.max_load, max_calls_at_once=settings.max_calls_at_once)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asked: set[asyncio.Task[list[Any]]] = set()  # calls that workers have
        self._names = itertools.count()
        self._changed = asyncio.Event()
        self._fault: BaseException | None = None
        self.usage = PoolUsage(max_load=settings.max_load)

    @property
    def num_removed(self) -> int:
        """Losses that count towards max_restarts."""
        return self.losses.num_counted

    @property
    def workers(self) -> tuple[PoolMember, ...]:
        """All that there are, starting and draining ones among them."""
        return tuple(self._workers)

    @property
    def members(self) -> tuple[PoolMember, ...]:
        """Workers that hold or shall hold weights: JOINING and SERVING."""
        return tuple(member for member in self._workers if member.state in (WorkerState.JOINING, WorkerState.SERVING))

    @property
    def num_serving(self) -> int:
        return sum(1 for member in self._workers if member.state is WorkerState.SERVING)

    @property
    def num_calls_in_flight(self) -> int:
        return sum(member.num_calls for member in self._workers)

    @property
    def num_waiting(self) -> int:
        """Calls that no worker has yet."""
        return len(self._queue)

    async def start(self) -> None:
        """Start the desired workers; one that dies or hangs meanwhile is left to `supervise`.

        Raises WorkerDiedError for one that refuses to start, the configuration being the likely cause.
        """
        async with asyncio.TaskGroup() as starts:
            for _ in range(self.desired - len(self._workers)):
                starts.create_task(self._starts.first(self._create()))

    async def supervise(self, admit: Admit | None) -> None:
        """Keep the desired number of workers until cancelled. Raises PoolExhaustedError when too many are lost.

        `admit` brings a new worker that receives weights to where it may serve; None: it serves what it has loaded.
        """
        try:
            async with asyncio.TaskGroup() as joins:
                while True:
                    changed = self._changed
                    self._raise_if_failed()
                    present = [member for member in self._workers if member.state is not WorkerState.DRAINING]
                    for number in range(len(present), self.desired):
                        member = self._create(is_addition=number >= self._num_proven)
                        joins.create_task(self._starts.bring_up(member, admit))
                    self._let_go(now=False)
                    await changed.wait()
        finally:
            for call in self._queue.take_all():
                call.fail(self.losses.exhausted() or WorkerDiedError(f"no {self.settings.kind} is replaced any more"))

    def resize(self, num_workers: int, *, now: bool = False) -> None:
        """Change how many workers there shall be; what is too many finishes its calls first.

        `now`: it hands them back instead, and so do those that are finishing already. They are made again elsewhere.
        """
        self.desired = num_workers
        self._num_proven = min(self._num_proven, num_workers)
        self._let_go(now=now)
        self._wake_waiters()

    def serve(self, member: PoolMember) -> None:
        """The member holds the published weights; it may get calls."""
        if member.state is WorkerState.JOINING:
            member.state = WorkerState.SERVING
            self.losses.note_served(member)
            self._num_proven = max(self._num_proven, min(self.num_serving, self.desired))
            self._wake_waiters()

    def remove(self, member: PoolMember, *, reason: str) -> None:
        """Take a dead or refused worker out and count it. Its calls are made again elsewhere."""
        if member.state is WorkerState.GONE:
            return
        if self.losses.count(member, reason=reason):
            _log.warning("%ss stay %d: those that were added fail", self.settings.kind, self._num_proven)
            self.desired = self._num_proven
        self.discard(member)
        self._wake_waiters()

    async def call(
        self,
        method: str,
        *arguments: Any,
        what: str,
        load: int = 1,
        on_start: Callable[[], None] | None = None,
        on_retry: Callable[[str], None] | None = None,
    ) -> Any:
        """The answer of the serving worker with the least to do; asked again elsewhere when that one dies.

        `on_start` hears of each worker that gets it, `on_retry` of each death. Raises PoisonedCallError after three,
        PoolExhaustedError, what the method raises.
        """
        self._raise_if_failed()
        start = now()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call = Call(method=method, arguments=arguments, what=what, load=load, answer=answer)
        call.on_start, call.on_retry = on_start, on_retry
        self._queue.add(call)
        self._dispatch()
        result = await answer
        self.usage.note_answer(seconds=now() - start)
        return result

    def abandon_calls(self) -> None:
        """Nobody waits for an answer any more; workers stop what they were asked where they can, and stay."""
        for call in self._queue.take_all():
            call.answer.cancel()
        for asked in self._asked:
            asked.cancel()

    async def shutdown(self, *, seconds: float) -> None:
        """Let every worker end its processes, then kill what is left. Never raises on a dead worker."""
        workers, self._workers = self._workers, []
        for task in tuple(self._tasks):
            task.cancel()
        await shut_down_actors([member.actor for member in workers], seconds=seconds, kill=self._kill_actor)

    def _create(self, *, is_addition: bool = False) -> PoolMember:
        name = f"{self.settings.kind} {next(self._names)}"
        member = PoolMember(name=name, actor=self._create_actor(name), pool=self, is_addition=is_addition)
        self._workers.append(member)
        return member

    def _let_go(self, *, now: bool) -> None:
        """Drain what is more than desired, the least useful first; `now`: wait for no call, of former ones neither."""
        present = [member for member in self._workers if member.state is not WorkerState.DRAINING]
        for member in least_useful(present)[: max(0, len(present) - self.desired)]:
            if member.state is WorkerState.SERVING:
                member.state = WorkerState.DRAINING
            else:
                self.discard(member)
        for member in tuple(self._workers):
            if member.state is WorkerState.DRAINING:
                self._retire(member) if now else self._retire_when_idle(member)

    def _retire_when_idle(self, member: PoolMember) -> None:
        if member.state is WorkerState.DRAINING and member.num_calls == 0:
            self._retire(member)

    def _retire(self, member: PoolMember) -> None:
        """Take out one that is no longer wanted; calls that it holds are made again elsewhere, under no suspicion."""
        member.state = WorkerState.GONE
        self._workers.remove(member)
        member.died.set()
        self._run(shut_down_actors([member.actor], seconds=_RETIRE_SECONDS, kill=self._kill_actor))

    def discard(self, member: PoolMember) -> None:
        """Take out and kill, without counting it as a loss."""
        if member.state is WorkerState.GONE:
            return
        member.state = WorkerState.GONE
        if member in self._workers:
            self._workers.remove(member)
        member.died.set()
        self._kill_actor(member.actor)

    def _dispatch(self) -> None:
        """Hand waiting calls to the workers that have room."""
        while True:
            serving = [member for member in self._workers if member.state is WorkerState.SERVING]
            taken = self._queue.take(serving)
            if taken is None:
                break
            member, calls = serving[taken[0]], taken[1]
            member.num_calls += 1
            member.load += sum(call.load for call in calls)
            member.is_reserved = calls[0].is_alone
            for call in calls:
                if call.on_start is not None:
                    call.on_start()
            self._run(self._perform(member, calls))
        self.usage.note(self._workers)

    async def _perform(self, member: PoolMember, calls: list[Call]) -> None:
        asked = asyncio.ensure_future(self._ask(member, calls))
        self._asked.add(asked)
        try:
            await asyncio.wait((asked,))
        finally:
            self._asked.discard(asked)
            asked.cancel()
        self._settle(member, calls, asked)

    async def _ask(self, member: PoolMember, calls: list[Call]) -> list[Any]:
        """The answers to calls that are made as one. Raises WorkerDiedError when the worker is removed meanwhile."""
        first = calls[0]
        what = first.what if len(calls) == 1 else f"{first.what} and {len(calls) - 1} more"
        method = getattr(member.actor, first.method)
        is_list = self.settings.max_calls_at_once > 1
        reference = method.remote([call.arguments for call in calls]) if is_list else method.remote(*first.arguments)
        # of a worker that answers one after another, a call also waits for those before it
        waits_for = member.load if self.settings.is_exclusive else len(calls)
        seconds = self.settings.call_seconds * waits_for
        died = asyncio.ensure_future(member.died.wait())
        answer = asyncio.ensure_future(within(reference, who=member.name, what=what, seconds=seconds))
        try:
            await asyncio.wait((answer, died), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise WorkerDiedError(f"{member.name} was removed during '{what}'")
            return list(answer.result()) if is_list else [answer.result()]
        except asyncio.CancelledError:
            if isinstance(reference, ray.ObjectRef):
                ray.cancel(reference)  # an engine drops what it generates, a queued call is never begun
            raise
        finally:
            died.cancel()
            answer.cancel()  # else asyncio prints a traceback for the error of a call that nobody waits for any more

    def _settle(self, member: PoolMember, calls: list[Call], task: asyncio.Task[list[Any]]) -> None:
        """Every call gets its answer, its error or another attempt."""
        member.num_calls -= 1
        member.load -= sum(call.load for call in calls)
        member.is_reserved = False
        error = None if task.cancelled() else task.exception()
        if task.cancelled():  # the calls were abandoned
            for call in calls:
                call.answer.cancel()
        elif error is None:
            for call, answer in zip(calls, task.result(), strict=True):
                call.succeed(answer)
        elif isinstance(error, WorkerDiedError) or is_worker_failure(error):
            if member.state is not WorkerState.GONE:  # else somebody else took it out, for a reason of its own
                member.died_in_call = True
                self.remove(member, reason=str(error))
            self._retry(calls, reason=str(error), is_suspect=member.died_in_call)
        else:
            for call in calls:
                call.fail(error)
        self._retire_when_idle(member)
        self._wake_waiters()

    def _retry(self, calls: list[Call], *, reason: str, is_suspect: bool) -> None:
        """Put calls back whose worker died; `is_suspect`: they, or others beside them, may have killed it."""
        exhausted = self.losses.exhausted()
        for call in reversed(calls):
            if is_suspect:
                call.errors.append(reason)
            call.is_alone = len(call.errors) >= self.settings.max_shared_attempts
            if call.answer.done():
                continue
            if len(call.errors) >= MAX_ATTEMPTS:
                call.fail(PoisonedCallError(call.what, errors=call.errors))
            elif exhausted is not None:
                call.fail(exhausted)
            else:
                _log.warning("'%s' is asked again: %s", call.what, reason)
                if call.on_retry is not None:
                    call.on_retry(reason)
                self._queue.add_first(call)

    def _raise_if_failed(self) -> None:
        fault = self._fault or self.losses.exhausted()
        if fault is not None:
            raise fault

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        """A task that failed is no answer to anybody: its failure ends the run through `supervise`."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._fault = task.exception()
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._dispatch()
