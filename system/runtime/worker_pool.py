"""Workers of one kind as a pool: how many there are, who may serve, who gets the next call, and what if one dies.

    create ─> STARTING ─> JOINING ─admitted─> SERVING ─resize─> DRAINING ─last call answered─> GONE
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
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import ray
from ray.exceptions import RayError

from system.errors import CredenceError, DeadlineError, EngineFailedError
from system.runtime.call_queue import Call, CallQueue
from system.runtime.deadlines import within
from system.runtime.placement import ActorHandle, shut_down_actors
from system.runtime.pool_member import PoolMember, PoolSettings, WorkerState
from system.runtime.worker_failures import (
    WORKER_FAILURES,
    PoisonedCallError,
    PoolExhaustedError,
    WorkerDiedError,
    is_worker_failure,
)

_log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3  # of a call, each on another worker
_HOPELESS_SECONDS = 1800.0  # of starts that took too long, while none ever came to an end
_RETIRE_SECONDS = 10.0  # for a drained worker to end its processes

Admit = Callable[[PoolMember], Awaitable[None]]


class WorkerPool:
    """Owns the actors of one kind. `create_actor(name)` makes a new one; one event loop, no lock."""

    def __init__(
        self,
        settings: PoolSettings,
        *,
        create_actor: Callable[[str], ActorHandle],
        kill_actor: Callable[[ActorHandle], None] = ray.kill,
    ) -> None:
        self.settings = settings
        self._create_actor = create_actor
        self._kill_actor = kill_actor
        self._desired = settings.num_workers
        self._workers: list[PoolMember] = []
        self._queue = CallQueue(max_load=settings.max_load, max_calls_at_once=settings.max_calls_at_once)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asked: set[asyncio.Task[list[Any]]] = set()  # calls that workers have
        self._names = itertools.count()
        self._changed = asyncio.Event()
        self._last_reason = ""
        self._fault: BaseException | None = None
        self._has_started = False  # any worker, ever
        self._late_seconds = 0.0  # that were waited for workers in vain
        self.num_removed = 0

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
            for _ in range(self._desired - len(self._workers)):
                starts.create_task(self._start_first(self._create()))

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
                    for _ in range(self._desired - len(present)):
                        joins.create_task(self._bring_up(self._create(), admit))
                    for member in self._surplus(present):
                        self._drain(member)
                    await changed.wait()
        finally:
            for call in self._queue.take_all():
                call.fail(self._exhausted() or WorkerDiedError(f"no {self.settings.kind} is replaced any more"))

    def resize(self, num_workers: int) -> None:
        """Change how many workers there shall be; what is too many finishes its calls first."""
        self._desired = num_workers
        self._wake_waiters()

    def serve(self, member: PoolMember) -> None:
        """The member holds the published weights; it may get calls."""
        if member.state is WorkerState.JOINING:
            member.state = WorkerState.SERVING
            self._wake_waiters()

    def remove(self, member: PoolMember, *, reason: str) -> None:
        """Take a dead or refused worker out and count it. Its calls are made again elsewhere."""
        if member.state is WorkerState.GONE:
            return
        self._discard(member)
        self.num_removed += 1
        self._last_reason = f"{member.name}: " + reason.partition("\n")[0]  # Ray's go on with advice
        _log.warning("lost %s; %d of at most %d", self._last_reason, self.num_removed, self.settings.max_restarts)
        self._wake_waiters()

    async def call(
        self, method: str, *arguments: Any, what: str, load: int = 1, on_retry: Callable[[str], None] | None = None
    ) -> Any:
        """The answer of the serving worker with the least to do; asked again elsewhere when that one dies.

        `on_retry` hears each death. Raises PoisonedCallError after three, PoolExhaustedError, what the method raises.
        """
        self._raise_if_failed()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.add(
            Call(method=method, arguments=arguments, what=what, load=load, on_retry=on_retry, answer=answer)
        )
        self._dispatch()
        return await answer

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

    def _create(self) -> PoolMember:
        name = f"{self.settings.kind} {next(self._names)}"
        member = PoolMember(name=name, actor=self._create_actor(name), pool=self)
        self._workers.append(member)
        return member

    async def _start_first(self, member: PoolMember) -> None:
        try:
            await self._start(member, is_replacement=False)
        except WorkerDiedError as error:
            if not isinstance(error.__cause__, RayError | DeadlineError):
                raise

    async def _start(self, member: PoolMember, *, is_replacement: bool) -> None:
        """STARTING to JOINING, or to SERVING where no weights are received. Raises WorkerDiedError."""
        try:
            num_ranks = await within(
                member.actor.start.remote(), who=member.name, what="start", seconds=self.settings.start_seconds
            )
        except (RayError, CredenceError) as error:
            self._late_seconds += self.settings.start_seconds if isinstance(error, DeadlineError) else 0.0
            self.remove(member, reason=f"it did not start: {error}")
            if not is_replacement and not is_worker_failure(error):
                raise  # the configuration is at fault: its own message says more
            raise WorkerDiedError(f"{member.name} did not start: {error}") from error
        except asyncio.CancelledError:
            self._discard(member)
            raise
        if member.state is WorkerState.STARTING:
            self._has_started = True
            member.num_ranks = num_ranks or 0
            member.state = WorkerState.JOINING
            if not self.settings.receives_weights:
                self.serve(member)

    async def _bring_up(self, member: PoolMember, admit: Admit | None) -> None:
        """A replacement from its creation to SERVING; when it dies on the way, `supervise` starts another."""
        try:
            await self._start(member, is_replacement=True)
            if admit is not None and member.state is WorkerState.JOINING:
                await within(admit(member), who=member.name, what="join", seconds=self.settings.start_seconds)
        except WorkerDiedError as error:
            is_hopeless = isinstance(error.__cause__, EngineFailedError) or self._late_seconds > _HOPELESS_SECONDS
            if is_hopeless and not self._has_started:
                raise  # it is not worth max_restarts deadlines
            return  # counted where it was noticed
        except WORKER_FAILURES as error:
            if not is_worker_failure(error):
                raise
            self.remove(member, reason=f"it did not join: {error}")
        if member.state is WorkerState.SERVING:
            _log.warning("%s has joined and serves", member.name)

    def _surplus(self, present: list[PoolMember]) -> list[PoolMember]:
        """The workers to let go, the least useful first."""
        order = (WorkerState.STARTING, WorkerState.JOINING, WorkerState.SERVING)
        ranked = sorted(present, key=lambda member: (order.index(member.state), member.load))
        return ranked[: max(0, len(present) - self._desired)]

    def _drain(self, member: PoolMember) -> None:
        if member.state is not WorkerState.SERVING:
            self._discard(member)
            return
        member.state = WorkerState.DRAINING
        self._retire_when_idle(member)

    def _retire_when_idle(self, member: PoolMember) -> None:
        if member.state is WorkerState.DRAINING and member.num_calls == 0:
            member.state = WorkerState.GONE
            self._workers.remove(member)
            self._run(shut_down_actors([member.actor], seconds=_RETIRE_SECONDS, kill=self._kill_actor))

    def _discard(self, member: PoolMember) -> None:
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
                return
            member, calls = serving[taken[0]], taken[1]
            member.num_calls += 1
            member.load += sum(call.load for call in calls)
            member.is_reserved = calls[0].is_alone
            self._run(self._perform(member, calls))

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
        exhausted = self._exhausted()
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

    def _exhausted(self) -> PoolExhaustedError | None:
        if self.num_removed <= self.settings.max_restarts:
            return None
        return PoolExhaustedError(
            f"{self.num_removed} {self.settings.kind}s were lost in this run, more than {self.settings.section}."
            f"max_restarts={self.settings.max_restarts}. The last: {self._last_reason}"
        )

    def _raise_if_failed(self) -> None:
        fault = self._fault or self._exhausted()
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
