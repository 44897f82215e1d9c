"""What the watchdog sees of a run: nothing wrong with a healthy one, and the stage that stands still by its name."""

import asyncio
from random import Random
from typing import Any

import pytest

from system.errors import DeadlineError
from system.runtime.deadlines import wait_observer, within
from system.runtime.open_waits import OpenWaits
from system.runtime.stall_clock import Stall, StallClock
from tests.runtime.controller_fakes import FakeRun, make_config
from tests.virtual_time import run_in_virtual_time

STALL_SECONDS = 8.0  # longer than any pause of the fakes, shorter than their deadlines


async def watched(run: FakeRun, *, faults: Any = None) -> list[Stall]:
    """The stalls of a run, looked for twice a second, until it ends or a stall is final."""
    loop = asyncio.get_running_loop()
    waits, clock, stalls = OpenWaits(clock=loop.time), StallClock(STALL_SECONDS), list[Stall]()
    wait_observer.set(waits)
    running = asyncio.ensure_future(run.run(faults=faults))
    while not running.done() and not any(stall.is_final for stall in stalls):
        await asyncio.wait((running,), timeout=0.5)
        if run.controller is not None:
            stalls += clock.observe(run.controller.stages.observe(waits), now=loop.time())
    running.cancel()
    await asyncio.wait((running,))
    return stalls


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_a_healthy_run_never_stands_still(max_staleness: int) -> None:
    for seed in range(3):
        run = FakeRun(make_config(controller__max_staleness=max_staleness), random=Random(seed))
        assert run_in_virtual_time(watched(run)) == []
        assert len(run.learner.trained) == 4
        assert run.controller is not None
        assert run.controller.stages.observe(OpenWaits()) == []  # a run that has ended has no work


def test_a_hung_worker_is_left_to_the_deadline_of_its_call() -> None:
    async def hang() -> None:
        engine = run.actors[0]
        while not (run.controller and run.controller.stages.phase == "rollout" and engine.calls[-1] == "generate"):
            await asyncio.sleep(0.01)
        engine.is_hung = True

    run = FakeRun(make_config(run__num_updates=6))
    assert run_in_virtual_time(watched(run, faults=hang())) == []
    assert (run.pools.rollouts.num_removed, len(run.learner.trained)) == (1, 6)


def test_a_train_step_that_does_not_end_is_named() -> None:
    run = FakeRun(make_config(controller__max_staleness=1))
    run.learner.pause = asyncio.Event().wait
    stalls = run_in_virtual_time(watched(run), seconds=1000.0)
    assert [(stall.stage, stall.is_final) for stall in stalls] == [("train", False), ("train", True)]
    assert stalls[1].seconds == pytest.approx(2 * STALL_SECONDS, abs=1.0)


def test_a_batch_that_nobody_prepares_is_named() -> None:
    class StuckComparison:
        async def measure(self) -> None:
            await asyncio.Event().wait()

    async def break_preparation() -> None:
        assert run.controller is not None
        run.controller._preparation._comparison = StuckComparison()  # type: ignore[assignment]

    run = FakeRun(make_config())
    stalls = run_in_virtual_time(watched(run, faults=break_preparation()), seconds=1000.0)
    assert {stall.stage for stall in stalls} == {"prepare", "wait for a batch"}


def test_a_run_in_which_nobody_has_work_is_a_deadlock() -> None:
    run = FakeRun(make_config())

    async def lose_a_wake_up() -> None:
        run.buffer._is_batch_ready = lambda: False  # type: ignore[method-assign]

    stalls = run_in_virtual_time(watched(run, faults=lose_a_wake_up()), seconds=1000.0)
    assert {stall.stage for stall in stalls} == {"wait for a batch"}


def test_open_waits_know_who_is_waited_for_and_how_long() -> None:
    now = [100.0]
    waits = OpenWaits(clock=lambda: now[0])
    rollout, learner = frozenset({"rollout worker"}), frozenset({"learner rank"})
    wait = waits.begin(["rollout worker 3"], what="generate group 7", seconds=20.0)
    now[0] = 119.9
    assert (waits.are_in_time(rollout), waits.are_in_time(learner), waits.are_in_time(None)) == (True, False, True)
    assert waits.describe() == ["19.9 s of 20 s for rollout worker 3: generate group 7"]
    now[0] = 120.0
    assert not waits.are_in_time(rollout)
    waits.end(wait)
    assert (waits.num_ended(rollout), waits.num_ended(learner), waits.num_ended(None)) == (1, 0, 1)
    assert waits.describe() == []


def test_who_misses_a_deadline_is_looked_at_before_the_error_comes() -> None:
    events: list[str] = []

    async def look(late: Any, what: str, seconds: float) -> None:
        events.append(f"{late} {what} {seconds:g}")
        await asyncio.sleep(2.0)
        events.append("looked")

    async def wait_in_vain() -> None:
        waits = OpenWaits(before_giving_up=look, clock=asyncio.get_running_loop().time)
        wait_observer.set(waits)
        with pytest.raises(DeadlineError, match="rollout worker 3 did not finish 'generate' within 20 s"):
            await within(asyncio.Event().wait(), who="rollout worker 3", what="generate", seconds=20.0)
        events.append("raised")
        assert waits.describe() == []
        assert await within(asyncio.sleep(1.0, "answer"), who="rollout worker 3", what="x", seconds=2.0) == "answer"

    run_in_virtual_time(wait_in_vain())
    assert events == ["['rollout worker 3'] generate 20", "looked", "raised"]
