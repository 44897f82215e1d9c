"""The controller's side of `credence scale` and `credence status`, and the autoscaling. Started by commands/train.py.

| loop        | waits for                        | who unblocks it                                    |
|-------------|----------------------------------|----------------------------------------------------|
| answer_loop | a request in the mailbox         | `credence scale`, or the end of one poll           |
| status_loop | _STATUS_SECONDS                  | the clock; then it pushes the status and autoscales |

Both only change how many workers the pools want (`WorkerPool.resize`); starting, draining and replacing is the pools'
own work. A mailbox that dies or hangs is made again: it is no reason for a run to end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

from ray.exceptions import RayError

from system.config.schema import Config, RewardConfig, RolloutConfig, ScorerConfig
from system.errors import DeadlineError
from system.runtime.autoscaler import DOWN_SECONDS, Bounds, PoolObservation, decide
from system.runtime.deadlines import within
from system.runtime.placement import ActorHandle
from system.runtime.pools import Pools
from system.runtime.run_control import ScaleAnswer, ScaleChange, ScaleRequest
from system.runtime.run_mailbox import Mailboxes
from system.runtime.run_status import Progress, RunStatus, make_status
from system.runtime.worker_pool import WorkerPool

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

SECTIONS = ("rollout", "reward", "scorer")
_STATUS_SECONDS = 1.0
_POLL_SECONDS = 20.0
_ANSWER_SECONDS = 30.0  # of the mailbox, which does nothing but answer
_REOPEN_SECONDS = 5.0


class ControlLoop:
    """`progress` is set once the controller exists. `open_mailbox` gives a new RunControl; both functions block."""

    def __init__(
        self,
        run: str,
        *,
        config: Config,
        pools: Pools,
        open_mailbox: Callable[[], ActorHandle],
        close_mailbox: Callable[[], None],
    ) -> None:
        self.progress: Progress | None = None
        self._run = run
        self._config = config
        self._pools: Mapping[str, WorkerPool] = pools.by_section()
        self._bounds = {section: bounds for section in self._pools if (bounds := bounds_of(config, section))}
        self._seen: dict[str, deque[PoolObservation]] = {section: deque() for section in self._bounds}
        self._open_mailbox = open_mailbox
        self._close_mailbox = close_mailbox
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, beside the run. A fault of these loops is reported and does not end it."""
        self._task = asyncio.get_running_loop().create_task(self.run())
        self._task.add_done_callback(_report_fault)

    async def close(self) -> None:
        """The run ends; nobody finds it any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        await asyncio.to_thread(self._close_mailbox)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                mailbox = await asyncio.to_thread(self._open_mailbox)
                async with asyncio.TaskGroup() as loops:
                    loops.create_task(self._answer_loop(mailbox))
                    loops.create_task(self._status_loop(mailbox))
            except* (RayError, DeadlineError) as group:
                reason = str(group.exceptions[0]).partition("\n")[0]
                _log.warning("'credence scale' and 'credence status' do not reach this run for now: %s", reason)
            await asyncio.sleep(_REOPEN_SECONDS)

    def status(self) -> RunStatus:
        """How the run stands now."""
        return make_status(
            self._run,
            pools=self._pools,
            progress=self.progress,
            num_updates=self._config.run.num_updates,
            max_staleness=self._config.controller.max_staleness,
        )

    def apply(self, request: ScaleRequest) -> ScaleAnswer:
        """Do all of a request, or nothing of it."""
        for section, wanted in request.workers.items():
            refusal = self._refusal(section, wanted)
            if refusal is not None:
                return ScaleAnswer(refusal=refusal)
        pools = self._pools
        changes = tuple(
            ScaleChange(section=each, kind=pools[each].settings.kind, before=pools[each].desired, after=wanted)
            for each, wanted in request.workers.items()
        )
        for change in changes:
            _log.warning("asked for %d instead of %d %ss", change.after, change.before, change.kind)
            pools[change.section].resize(change.after, now=request.now)
        return ScaleAnswer(changes=changes)

    def _refusal(self, section: str, wanted: int) -> str | None:
        if section not in SECTIONS:
            return f"there are no {section} workers: give one of {', '.join(SECTIONS)}"
        if section not in self._pools:
            return f"this run has no {section} workers: no reward term and no algorithm needs the policy's weights"
        bounds = self._bounds.get(section)
        if bounds is not None and not bounds.smallest <= wanted <= bounds.largest:
            return (
                f"{section}={wanted} is outside the bounds of autoscaling, {section}.min_workers={bounds.smallest} and "
                f"{section}.max_workers={bounds.largest}"
            )
        if wanted < 1:
            return f"{section}={wanted}: a run needs at least 1 {self._pools[section].settings.kind}"
        return None

    async def _answer_loop(self, mailbox: ActorHandle) -> None:
        while True:
            poll = mailbox.next_requests.remote(_POLL_SECONDS)
            requests = await _of_mailbox(poll, what="next_requests", seconds=_POLL_SECONDS + _ANSWER_SECONDS)
            for number, request in requests:
                await _of_mailbox(mailbox.answer.remote(number, self.apply(request)), what="answer")

    async def _status_loop(self, mailbox: ActorHandle) -> None:
        while True:
            self._autoscale()
            await _of_mailbox(mailbox.push_status.remote(self.status()), what="push_status")
            await asyncio.sleep(_STATUS_SECONDS)

    def _autoscale(self) -> None:
        for section, bounds in self._bounds.items():
            pool, seen = self._pools[section], self._seen[section]
            phase = "start" if self.progress is None else self.progress.outcome.phase
            if phase == "evaluate":  # calls wait there by design, and soon it is over
                continue
            observation = _observe(pool, is_learner_waiting=phase == "rollout")
            seen.append(observation)
            while seen[0].seconds < observation.seconds - 2 * DOWN_SECONDS:
                seen.popleft()
            wanted = decide(tuple(seen), bounds)
            if wanted != pool.desired:
                _log.warning("autoscaling: %d instead of %d %ss", wanted, pool.desired, pool.settings.kind)
                pool.resize(wanted)


def bounds_of(config: Config, section: str) -> Bounds | None:
    """Between which numbers of workers a section is scaled by itself; None: it is not."""
    workers: RolloutConfig | RewardConfig | ScorerConfig = getattr(config, section)
    if workers.min_workers is None or workers.max_workers is None:
        return None
    return Bounds(smallest=workers.min_workers, largest=workers.max_workers)


def _observe(pool: WorkerPool, *, is_learner_waiting: bool) -> PoolObservation:
    return PoolObservation(
        seconds=asyncio.get_running_loop().time(),
        desired=pool.desired,
        num_serving=pool.num_serving,
        num_waiting=pool.num_waiting,
        load=sum(member.load for member in pool.workers),
        room_of_worker=pool.settings.max_load or 1,
        is_learner_waiting=is_learner_waiting,
    )


def _report_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("this run cannot be scaled any more", exc_info=task.exception())


async def _of_mailbox(call: Awaitable[Answer], *, what: str, seconds: float = _ANSWER_SECONDS) -> Answer:
    return await within(call, who="the mailbox of the run", what=what, seconds=seconds)


def control_of_run(run_folder: Path, *, config: Config, pools: Pools) -> ControlLoop:
    """The control of a run on the Ray cluster that this process has joined, started."""
    mailboxes = Mailboxes(run_folder, cluster_address=config.cluster.address)
    control = ControlLoop(
        run_folder.name, config=config, pools=pools, open_mailbox=mailboxes.open, close_mailbox=mailboxes.close
    )
    control.start()
    return control
