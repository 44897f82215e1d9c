"""The watchdog of a run: a thread that notices what stands still, says what it was doing, and ends it at last.

    thread ──call_soon_threadsafe──> event loop: look at the stages (stages.py)      every interval
       │ <──────── observations ─────────┘
       ├─ the loop does not answer for loop_seconds ──────────────┐
       ├─ a stage has no progress for stall_seconds (stall_clock) ┴─> stacks to RUN_DIR/stacks, alert
       └─ twice as long ─> stacks, alert, StalledError through the task under `guard`

| wait that does not end                          | who acts                                                        |
|-------------------------------------------------|-----------------------------------------------------------------|
| a call with a deadline of its own               | that deadline; the stacks are written before the worker is lost |
| a stage, without such a deadline to come        | the watchdog: the task under `guard` is cancelled               |
| the event loop: blocked by code of ours         | the watchdog: StalledError is raised in it by a signal          |
| the way out, until the loop is closed           | the watchdog: it ends the process, loop_seconds and 60 s later  |

Its own clock does not run while the whole process is stopped (SIGSTOP, a suspended machine).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from system.config.machine import joins_cluster
from system.config.run_schema import WatchdogConfig
from system.config.schema import Config
from system.errors import StalledError
from system.runtime.deadlines import wait_observer
from system.runtime.open_waits import ACTORS, OpenWaits, kind_of
from system.runtime.stack_dump import StackDump, cluster_stacks, local_stacks
from system.runtime.stages import EVENT_LOOP, waits_for
from system.runtime.stall_clock import StageObservation, Stall, StallClock

Observe = Callable[[OpenWaits], list[StageObservation]]
Alert = Callable[[str, str], None]

_LOOP_SIGNAL = signal.SIGUSR1  # raises StalledError in the main thread
_LATE_SECONDS = 10.0  # that a deadline waits for the stacks of those who missed it
_STALL_DUMP_SECONDS = 30.0
_MAX_LATE_DUMPS = 20
_SAME_LATE_SECONDS = 30.0  # within which a kind of worker is not looked at again


class Watchdog:
    """Watches the event loop and the stages of the run inside `guard`."""

    def __init__(
        self,
        config: WatchdogConfig,
        *,
        dump: StackDump,
        alert: Alert,
        how_to_continue: Callable[[], str],
        way_out_seconds: float = 60.0,
        alert_seconds: float = 5.0,
        end_process: Callable[[int], None] = os._exit,
    ) -> None:
        """`alert(title, text)` may block: it gets a thread of its own. `end_process(code)` ends it at once."""
        self._config = config
        self._dump = dump
        self._alert = alert
        self._how_to_continue = how_to_continue
        self._way_out_seconds = config.loop_seconds + way_out_seconds
        self._alert_seconds = alert_seconds
        self._end_process = end_process
        stall_seconds = config.stall_seconds or 0.0
        self._interval = min(1.0, stall_seconds / 10, config.loop_seconds / 10)
        self._stages, self._loop_clock = StallClock(stall_seconds), StallClock(config.loop_seconds)
        self._waits = OpenWaits(before_giving_up=self._look_at_late)
        self._observe: Observe = lambda waits: []
        self._observations: list[StageObservation] | None = None  # new since the last tick
        self._last_observations: list[StageObservation] = []
        self._num_looks = 0
        self._is_look_due = False
        self._now = 0.0  # seconds that this process ran
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[object] | None = None
        self._stalled: StalledError | None = None
        self._stalled_at = 0.0
        self._late_dumps: dict[str, tuple[float, asyncio.Task[None]]] = {}
        self._num_late_dumps = 0

    def watch(self, observe: Observe) -> None:
        """From now on also these stages; `observe` is called in the event loop."""
        self._observe = observe

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Raises StalledError into the body, and from it, when it stands still for too long."""
        if self._config.stall_seconds is None:
            yield
            return
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        token = wait_observer.set(self._waits)
        is_main = threading.current_thread() is threading.main_thread()
        former = signal.signal(_LOOP_SIGNAL, self._raise_stalled) if is_main else None
        self._thread.start()
        try:
            yield
        except BaseException as error:
            if self._stalled is None:
                raise
            assert self._task is not None
            self._task.uncancel()
            raise self._stalled from error
        finally:
            if self._stalled is None:
                self._stopping.set()  # else the rest of the way out is watched as well
            wait_observer.reset(token)
            if is_main:
                signal.signal(_LOOP_SIGNAL, former)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._stopping.wait(self._interval):
            now = time.monotonic()
            self._now += min(now - last, 2 * self._interval)
            last = now
            self._tick()

    def _tick(self) -> None:
        assert self._loop is not None
        if self._loop.is_closed():
            self._stopping.set()
            return
        if self._stalled is not None:
            if self._now > self._stalled_at + self._way_out_seconds:
                print(f"credence: {self._stalled} (the way out is blocked as well)", file=sys.stderr, flush=True)
                self._end_process(2)
            return
        if not self._is_look_due and not self._stopping.is_set():
            self._is_look_due = True
            with suppress(RuntimeError):  # closed since
                self._loop.call_soon_threadsafe(self._look)
        is_alive = StageObservation(stage=EVENT_LOOP, is_busy=True, progress=self._num_looks)
        stalls = self._loop_clock.observe([is_alive], now=self._now)
        observations, self._observations = self._observations, None
        if observations is not None:
            self._last_observations = observations
            stalls += self._stages.observe(observations, now=self._now)
        for stall in sorted(stalls, key=lambda stall: not stall.is_final):
            if self._stalled is None:
                self._act(stall)

    def _look(self) -> None:
        """In the event loop."""
        self._num_looks += 1
        self._is_look_due = False
        self._observations = self._observe(self._waits)

    def _act(self, stall: Stall) -> None:
        what = f"{stall.stage} stands still for {stall.seconds:.0f} s"
        others = [
            f"{'*' if each.is_busy else ' '} {each.stage}, progress {each.progress}" for each in self._last_observations
        ]
        lines = [what, "stages (*: has work):", *others, "waits:", *self._waits.describe()]
        actors = [ACTORS[kind] for kind in sorted(waits_for(stall.stage))]
        path = self._write_stacks(stall.stage, lines=lines, actors=actors, seconds=_STALL_DUMP_SECONDS)
        if self._stopping.is_set():  # the run ended meanwhile
            return
        if not stall.is_final:
            self._warn("The run stands still", f"{what}; stacks: {path}. The run ends if that lasts as long again.")
            return
        self._stalled_at = self._now
        self._stalled = StalledError(f"{what}, the run ends; stacks: {path}. {self._how_to_continue()}")
        self._warn("The run ends", str(self._stalled))
        self._end(is_loop_blocked=stall.stage == EVENT_LOOP)

    def _end(self, *, is_loop_blocked: bool) -> None:
        assert self._loop is not None
        assert self._task is not None
        self._loop.call_soon_threadsafe(self._task.cancel)
        if is_loop_blocked:
            ident = threading.main_thread().ident
            assert ident is not None
            signal.pthread_kill(ident, _LOOP_SIGNAL)

    def _raise_stalled(self, number: int, frame: object) -> None:
        if self._stalled is not None:
            raise self._stalled

    async def _look_at_late(self, late: Sequence[str], what: str, seconds: float) -> None:
        """The stacks of who missed a deadline, before the worker is killed for it."""
        kinds = {kind_of(name) for name in late} & set(ACTORS)
        text = f"{', '.join(late)} did not finish '{what}' within {seconds:g} s"
        for kind in sorted(kinds):
            now = time.monotonic()
            known = self._late_dumps.get(kind)
            if known is None or now > known[0] + _SAME_LATE_SECONDS:
                if self._num_late_dumps == _MAX_LATE_DUMPS:
                    return
                self._num_late_dumps += 1
                known = (now, asyncio.create_task(self._dump_late(kind, text)))
                self._late_dumps[kind] = known
            await asyncio.wait((known[1],), timeout=_LATE_SECONDS)

    async def _dump_late(self, kind: str, text: str) -> None:
        lines = [text, "waits:", *self._waits.describe()]
        seconds = _LATE_SECONDS / 2
        path = await asyncio.to_thread(self._write_stacks, kind, lines=lines, actors=[ACTORS[kind]], seconds=seconds)
        await asyncio.to_thread(self._warn, "No answer in time", f"{text}; stacks: {path}")

    def _write_stacks(self, name: str, *, lines: Sequence[str], actors: Sequence[str], seconds: float) -> Path:
        """The file. It may lack actors when these cannot be asked: the cluster may be what stands still."""
        assert self._loop is not None
        path = self._dump.next_path(name)
        write = partial(self._dump.write, path, lines=lines, actors=actors, loop=self._loop, seconds=seconds)
        _is_done_within(2 * seconds, write)
        return path

    def _warn(self, title: str, text: str) -> None:
        """An alert; what stands still may hold a lock of the display, then the bare terminal has to do."""
        if not _is_done_within(self._alert_seconds, partial(self._alert, title, text)):
            print(f"credence: {title}: {text}", file=sys.stderr, flush=True)


def make_watchdog(
    config: Config, *, run_folder: Path, alert: Callable[..., None], advice: Callable[[], str]
) -> Watchdog:
    """The watchdog of a training run. `alert(title, text=)`; `advice()` says how to go on once the run has ended."""
    stacks = cluster_stacks if joins_cluster(config.cluster) else local_stacks
    return Watchdog(
        config.watchdog,
        dump=StackDump(run_folder / "stacks", stacks_of_actors=stacks),
        alert=lambda title, text: alert(title, text=text),
        how_to_continue=advice,
    )


def _is_done_within(seconds: float, work: Callable[[], None]) -> bool:
    """Run `work` in a thread that is left behind when it takes longer."""
    thread = threading.Thread(target=work, name="watchdog-work", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
