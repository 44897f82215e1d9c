"""The watchdog's thread beside a real event loop: blocked loops and stuck stages end, with their stacks on file."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from system.config.run_schema import WatchdogConfig
from system.errors import DeadlineError, StalledError
from system.runtime.deadlines import wait_observer, within
from system.runtime.open_waits import OpenWaits
from system.runtime.stack_dump import StackDump
from system.runtime.stall_clock import StageObservation
from system.runtime.watchdog import Watchdog

NEVER = 1e6


class Watched:
    """A watchdog over a folder; what it did besides is kept."""

    def __init__(self, folder: Path, *, stall_seconds: float | None, loop_seconds: float, **options: Any) -> None:
        self.folder = folder / "stacks"
        self.alerts: list[tuple[str, str]] = []
        self.asked: list[tuple[str, ...]] = []
        defaults: dict[str, Any] = {"alert": lambda title, text: self.alerts.append((title, text))}
        self.watchdog = Watchdog(
            WatchdogConfig(stall_seconds=stall_seconds, loop_seconds=loop_seconds),
            dump=StackDump(self.folder, stacks_of_actors=self._stacks_of_actors),
            how_to_continue=lambda: "Continue from update_000050: credence train --resume runs/x",
            **(defaults | options),
        )

    def _stacks_of_actors(self, actors: Any, seconds: float) -> str:
        self.asked.append(tuple(actors))
        return f"stacks of {', '.join(actors)}"

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()


async def guarded(watched: Watched, body: Callable[[], Any]) -> Any:
    async with watched.watchdog.guard():
        return await body()


def block_the_loop() -> None:
    while True:
        time.sleep(0.01)


async def a_task_that_blocks() -> None:
    block_the_loop()


def test_a_blocked_event_loop_is_dumped_and_ends_with_an_error_that_names_it(tmp_path: Path) -> None:
    watched = Watched(tmp_path, stall_seconds=NEVER, loop_seconds=0.3)
    with pytest.raises(StalledError) as raised:
        asyncio.run(guarded(watched, a_task_that_blocks))
    message = str(raised.value)
    assert message.startswith("event loop stands still for ")
    assert str(watched.folder / "002-event-loop.txt") in message
    assert message.endswith("Continue from update_000050: credence train --resume runs/x")
    assert [title for title, _ in watched.alerts] == ["The run stands still", "The run ends"]
    for name in ("001-event-loop.txt", "002-event-loop.txt"):
        assert "in block_the_loop" in watched.text(name)
        assert "test_watchdog.py" in watched.text(name)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_loop_that_is_blocked_in_another_task_ends_the_body(tmp_path: Path) -> None:
    cleaned_up = []

    async def body() -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.sleep(NEVER))
                tasks.create_task(a_task_that_blocks())
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(True)

    watched = Watched(tmp_path, stall_seconds=NEVER, loop_seconds=0.3)
    with pytest.raises(StalledError, match="event loop"):
        asyncio.run(guarded(watched, body))
    assert cleaned_up == [True]


def test_a_stuck_stage_is_dumped_twice_and_ends_the_body(tmp_path: Path) -> None:
    async def train_for_ever() -> None:
        await asyncio.Event().wait()

    def observe(waits: OpenWaits) -> list[StageObservation]:
        return [
            StageObservation(stage="train", is_busy=True, progress=3),
            StageObservation(stage="score", is_busy=False, progress=5),
        ]

    watched = Watched(tmp_path, stall_seconds=0.3, loop_seconds=NEVER)
    watched.watchdog.watch(observe)
    with pytest.raises(StalledError, match=r"train stands still for \d+ s, the run ends; stacks: .*/002-train\.txt\."):
        asyncio.run(guarded(watched, train_for_ever))
    text = watched.text("002-train.txt")
    assert "* train, progress 3\n  score, progress 5" in text
    assert "in test_a_stuck_stage_is_dumped_twice_and_ends_the_body.<locals>.train_for_ever" in text
    assert "waits for <Future pending" in text
    assert text.endswith("== actors\nstacks of LearnerWorker\n")
    assert watched.asked == [("LearnerWorker",)] * 2


def test_a_way_out_that_is_blocked_as_well_ends_the_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended, codes = threading.Event(), list[int]()

    def end_process(code: int) -> None:
        codes.append(code)
        ended.set()

    async def stay() -> None:
        while not ended.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    watched = Watched(tmp_path, stall_seconds=0.2, loop_seconds=0.5, way_out_seconds=0.1, end_process=end_process)
    watched.watchdog.watch(lambda waits: [StageObservation(stage="evaluate", is_busy=True, progress=0)])
    with suppress(StalledError):
        asyncio.run(guarded(watched, stay))
    assert codes[0] == 2
    assert "evaluate stands still" in capfd.readouterr().err


def test_a_thread_that_never_ends_does_not_hold_the_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ended = threading.Event()
    watched = Watched(
        tmp_path, stall_seconds=0.2, loop_seconds=0.5, way_out_seconds=0.1, end_process=lambda code: ended.set()
    )
    watched.watchdog.watch(lambda waits: [StageObservation(stage="prepare", is_busy=True, progress=0)])
    with pytest.raises(StalledError, match="prepare"):
        # asyncio waits for the thread before it closes the loop
        asyncio.run(guarded(watched, lambda: asyncio.to_thread(ended.wait)))
    assert "(the way out is blocked as well)" in capfd.readouterr().err


def test_an_alert_that_hangs_holds_nothing_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    release = threading.Event()
    watched = Watched(
        tmp_path,
        stall_seconds=0.2,
        loop_seconds=NEVER,
        alert_seconds=0.1,
        alert=lambda title, text: release.wait(60),
    )
    watched.watchdog.watch(lambda waits: [StageObservation(stage="reports", is_busy=True, progress=0)])
    with pytest.raises(StalledError, match="reports"):
        asyncio.run(guarded(watched, asyncio.Event().wait))
    release.set()
    assert "credence: The run stands still: reports stands still" in capfd.readouterr().err


def test_who_misses_its_deadline_is_dumped_before_it_is_given_up(tmp_path: Path) -> None:
    watched = Watched(tmp_path, stall_seconds=NEVER, loop_seconds=NEVER)

    async def body() -> None:
        calls = [
            within(asyncio.Event().wait(), who=f"rollout worker {index}", what="generate group 7", seconds=0.05)
            for index in range(2)
        ]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [DeadlineError, DeadlineError]
        assert "stacks of RolloutWorker" in watched.text("001-rollout-worker.txt")  # it is there when the error comes

    asyncio.run(guarded(watched, body))
    assert [path.name for path in watched.folder.iterdir()] == ["001-rollout-worker.txt"]  # one look is enough
    assert "rollout worker 0 did not finish 'generate group 7' within 0.05 s" in watched.text("001-rollout-worker.txt")
    assert [title for title, _ in watched.alerts] == ["No answer in time"]


def test_without_stall_seconds_nobody_watches(tmp_path: Path) -> None:
    watched = Watched(tmp_path, stall_seconds=None, loop_seconds=0.01)

    async def body() -> None:
        time.sleep(0.3)
        assert wait_observer.get() is None

    asyncio.run(guarded(watched, body))
    assert not watched.folder.exists()


def test_files_of_an_earlier_session_are_kept(tmp_path: Path) -> None:
    (tmp_path / "007-train.txt").write_text("before")
    assert StackDump(tmp_path, stacks_of_actors=lambda actors, seconds: "").next_path("Wait for it").name == (
        "008-wait-for-it.txt"
    )
