"""SIGTERM with a grace period at every moment of a run: what is new is in the checkpoint that it leaves."""

import asyncio
import signal
from typing import Any, cast

import pytest

from system.runtime.preemption import Preemption
from system.runtime.session import _Stop
from tests.runtime.controller_fakes import FakeRun, make_config
from tests.virtual_time import run_in_virtual_time


async def preempted(run: FakeRun, *, moment: float) -> bool:
    """Whether the run had something to finish at that moment; it has ended when this returns."""
    task = asyncio.ensure_future(run.run())
    await asyncio.sleep(moment)
    had_something = run.preemption.request()
    if not had_something:
        task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled() or task.exception() is None, task.exception()
    return had_something


def test_a_preempted_run_leaves_a_checkpoint_and_a_line_of_its_last_update() -> None:
    versions: set[int] = set()
    for moment in (0.25 * number for number in range(1, 160)):
        run = FakeRun(make_config(checkpoint__every_updates="null", evaluation__every_updates=1))
        if not run_in_virtual_time(preempted(run, moment=moment)):
            continue
        saved = [state.policy_version for state in run.checkpoints.states]
        assert saved == ([run.learner.version] if run.learner.version else []), moment
        assert [version for version, _ in run.reporter.lines] == list(range(run.learner.version + 1)), moment
        for state in run.checkpoints.states:
            assert state.ledger["trained"] == 2 * state.policy_version
            assert run.checkpoints.trained[state.policy_version] == run.learner.trained
        versions |= {run.learner.version}
    assert versions >= {0, 1, 2, 3}


def test_nothing_is_saved_twice() -> None:
    for moment in (0.5 * number for number in range(1, 80)):
        run = FakeRun(make_config(checkpoint__every_updates=1, evaluation__every_updates="null"))
        run_in_virtual_time(preempted(run, moment=moment))
        saved = [state.policy_version for state in run.checkpoints.states]
        assert saved == sorted(set(saved)), moment


def test_what_raises_while_it_is_finished_is_raised() -> None:
    async def fails() -> None:
        preemption = Preemption()

        async def work() -> None:
            async with preemption.uninterrupted:
                preemption.request()
                await asyncio.sleep(1.0)
                raise OSError("the disk is full")

        async def finish() -> None:
            raise AssertionError("there is nothing to finish")

        await preemption.run(work(), finish=finish)

    with pytest.raises(OSError, match="the disk is full"):
        run_in_virtual_time(fails())


class FakeTask:
    def __init__(self) -> None:
        self.num_cancelled = 0

    def cancel(self) -> None:
        self.num_cancelled += 1

    def cancelling(self) -> int:
        return self.num_cancelled


async def received(numbers: list[signal.Signals], *, grace_seconds: float, work_seconds: float) -> list[int]:
    """How often the run was cancelled: after each of the signals, and when `work_seconds` are over."""
    preemption, task = Preemption(), FakeTask()
    stop = _Stop(cast(Any, task), preemption=preemption, grace_seconds=grace_seconds)

    async def finish() -> None:
        await asyncio.sleep(work_seconds)

    running = asyncio.ensure_future(preemption.run(asyncio.sleep(1000.0), finish=finish))
    await asyncio.sleep(0)
    counts = []
    for number in numbers:
        stop.receive(number)
        counts.append(task.num_cancelled)
    await asyncio.wait((running,))
    await asyncio.sleep(100.0)
    return [*counts, task.num_cancelled]


def test_sigterm_waits_for_its_grace_period_and_a_second_signal_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    term, interrupt = signal.SIGTERM, signal.SIGINT
    assert run_in_virtual_time(received([term], grace_seconds=30.0, work_seconds=10.0)) == [0, 0]
    assert "saved within 30 s" in capsys.readouterr().err
    assert run_in_virtual_time(received([term], grace_seconds=30.0, work_seconds=60.0)) == [0, 1]
    assert run_in_virtual_time(received([term], grace_seconds=0.0, work_seconds=60.0)) == [1, 1]
    assert run_in_virtual_time(received([term, term], grace_seconds=30.0, work_seconds=60.0)) == [0, 1, 1]
    assert run_in_virtual_time(received([interrupt], grace_seconds=30.0, work_seconds=10.0)) == [1, 1]
    assert run_in_virtual_time(received([term, interrupt, term], grace_seconds=30.0, work_seconds=60.0)) == [0, 1, 1, 1]
