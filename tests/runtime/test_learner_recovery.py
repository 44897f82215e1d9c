"""The learner group dies or hangs at every moment of a run: the run goes back to its checkpoint and ends as if not."""

import asyncio
import os
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from system.errors import ConfigError, LearnerDiedError, SnapshotLostError, first_error
from system.runtime.learner_recovery import learner_loss, undone
from tests.runtime.controller_fakes import METRICS, FakeRun, make_config
from tests.runtime.learner_fakes import FakeLearnerGroup
from tests.virtual_time import run_in_virtual_time

OF_THE_LOSS = {"learner/num_restarts", "ledger/undone", "ledger/regenerated"}
Fault = Callable[[FakeLearnerGroup], None]


def die(learner: FakeLearnerGroup) -> None:
    learner.is_dead = True


def hang(learner: FakeLearnerGroup) -> None:
    learner.is_hung = True


def metrics_of(run: FakeRun) -> list[tuple[int, dict[str, float]]]:
    """What two runs of one seed have in common."""
    return [
        (
            version,
            {
                name: value
                for name, value in values.items()
                if name not in OF_THE_LOSS and METRICS.find(name).is_reproducible
            },
        )
        for version, values in run.reporter.lines
    ]


async def disturb(run: FakeRun, *, moments: list[float], fault: Fault) -> None:
    for moment in moments:
        await asyncio.sleep(moment)
        fault(run.learner)


def ended(*, moments: list[float], fault: Fault = die, seed: int = 0, **overrides: object) -> FakeRun:
    run = FakeRun(make_config(learner__max_restarts=20, **overrides), random=Random(seed))
    run_in_virtual_time(run.run(faults=disturb(run, moments=moments, fault=fault)), seconds=20_000.0)
    return run


@pytest.mark.parametrize("fault", [die, hang])
def test_a_learner_lost_at_any_moment_leaves_the_metrics_of_the_undisturbed_run(fault: Fault) -> None:
    undisturbed = ended(moments=[])
    last = 0.0
    for moment in (0.5 * number for number in range(1, 100)):
        run = ended(moments=[moment], fault=fault)
        if not run.restarts.num_restarts:
            last = moment
            break
        assert metrics_of(run) == metrics_of(undisturbed), moment
        assert run.learner.trained == [[1, 2], [3, 4], [5, 6], [7, 8]]
        assert run.buffer.totals().is_balanced
        assert (run.buffer.totals().trained, run.buffer.totals().in_flight) == (8, 0)
        assert (run.restarts.num_restarts, len(run.learners.created), len(run.reporter.alerts)) == (1, 2, 1)
    assert last > 3.0, "the learner was never lost"


def test_what_was_trained_after_the_checkpoint_is_undone_and_made_again() -> None:
    run = FakeRun(make_config(run__num_updates=6, checkpoint__every_updates=2))

    async def kill_in_the_step_after_update_5() -> None:
        while run.learner.version < 5:
            await asyncio.sleep(0.01)
        run.learner.is_dead = True

    run_in_virtual_time(run.run(faults=kill_in_the_step_after_update_5()))
    assert run.learners.created[0].trained == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    assert run.learner.trained == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]]
    totals = run.buffer.totals()
    assert (totals.leased, totals.trained, totals.undone) == (12, 12, 2)
    assert [line["ledger/undone"] for _, line in run.reporter.lines[1:]] == [0, 0, 0, 0, 2, 2]
    assert [line["learner/num_restarts"] for _, line in run.reporter.lines[1:]] == [0, 0, 0, 0, 1, 1]
    assert ["learner/recovery_seconds" in line for _, line in run.reporter.lines] == [False] * 5 + [True, False]
    assert "update_000004 (restart 1 of at most 20)" in run.reporter.alerts[0].replace("most 3", "most 20")
    assert "1 updates with 2 groups are undone" in run.reporter.alerts[0]
    assert run.reporter.phases.count("recover") == 1


def test_before_the_first_checkpoint_the_run_begins_again() -> None:
    run = FakeRun(make_config(checkpoint__every_updates="null"))

    async def kill_after_update_3() -> None:
        while run.learner.version < 3:
            await asyncio.sleep(0.01)
        run.learner.is_dead = True

    run_in_virtual_time(run.run(faults=kill_after_update_3()))
    assert run.learner.trained == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert [version for version, _ in run.reporter.lines] == [0, 1, 2, 3, 4]
    assert "from the initial weights" in run.reporter.alerts[0]
    assert run.buffer.totals().undone in (4, 6)  # whether the third update was heard of before the death


def test_workers_stay_while_the_learner_is_replaced_and_drop_what_they_were_asked() -> None:
    run = ended(moments=[3.0, 30.0])
    assert run.restarts.num_restarts >= 1
    assert len(run.actors) == 2, "a worker was replaced"
    assert [pool.num_removed for pool in run.pools.all()] == [0, 0]


def test_a_learner_lost_again_while_it_starts_is_started_once_more() -> None:
    undisturbed = ended(moments=[])
    for second in (0.5, 1.5, 2.5, 3.5):
        run = ended(moments=[4.0, second, second])
        assert run.restarts.num_restarts >= 2
        assert metrics_of(run) == metrics_of(undisturbed)


def test_more_losses_than_max_restarts_end_the_run_and_say_how_to_go_on() -> None:
    run = FakeRun(make_config(learner__max_restarts=1))
    with pytest.raises((LearnerDiedError, BaseExceptionGroup)) as raised:
        run_in_virtual_time(run.run(faults=disturb(run, moments=[3.0, 8.0], fault=die)))
    error = first_error(raised.value) if isinstance(raised.value, BaseExceptionGroup) else raised.value
    assert isinstance(error, LearnerDiedError)
    assert "started again 1 times already, as often as learner.max_restarts allows" in str(error)
    assert "credence train --resume" in str(error)


def test_another_error_beside_the_loss_is_no_loss() -> None:
    died, lost = LearnerDiedError("rank 1"), SnapshotLostError("gone")
    assert learner_loss(died) is died
    assert learner_loss(ExceptionGroup("", [ExceptionGroup("", [lost]), ExceptionGroup("", [died])])) is died
    assert learner_loss(ExceptionGroup("", [lost])) is lost
    other = ConfigError("key", given=1, expected="2", fix="do")
    assert learner_loss(ExceptionGroup("", [died, other])) is None
    assert learner_loss(OSError()) is None


def test_the_ledger_of_the_beginning_remembers_what_was_undone() -> None:
    state = undone(undone(None, former=0, more=6), former=6, more=2)
    assert (state.policy_version, state.ledger["undone"], state.ledger["trained"]) == (0, 8, 0)


class Losses:
    """The learner dies or hangs, beside deaths and hangs of workers, at random moments."""

    def __init__(self, run: FakeRun, *, random: Random) -> None:
        self.run = run
        self.random = random

    async def loop(self) -> None:
        for _ in range(self.random.randrange(1, 5)):
            await asyncio.sleep(self.random.choice((0.0, 0.05, 0.5, 2.0, 10.0)))
            living = [actor for actor in self.run.actors if not actor.is_dead]
            fault = self.random.random()
            if fault < 0.4:
                self.run.learner.is_dead = True
            elif fault < 0.6:
                self.run.learner.is_hung = True
            elif fault < 0.8 and living:
                self.random.choice(living).is_dead = True
            elif living:
                self.random.choice(living).is_hung = True


def check_interleaving(seed: int) -> None:
    random = Random(seed)
    overrides: dict[str, Any] = {
        "controller__max_staleness": random.randrange(3),
        "rollout__num_workers": random.randrange(1, 3),
        "batch__portions": random.randrange(1, 3),
        "checkpoint__every_updates": random.choice((1, 2, 3, "null")),
        "learner__max_restarts": 20,
    }
    run = FakeRun(make_config(**overrides), random=random)
    controller = run_in_virtual_time(run.run(faults=Losses(run, random=random).loop()), seconds=20_000.0)
    trained = [prompt for step in run.learner.trained for prompt in step]
    totals = run.buffer.totals()
    assert (controller.outcome.policy_version, len(trained), totals.trained, totals.in_flight) == (4, 8, 8, 0)
    assert len(set(trained)) == len(trained), "a group was trained twice"
    assert totals.is_balanced
    assert [version for version, _ in run.reporter.lines] == [0, 1, 2, 3, 4]
    assert len(run.learners.created) == 1 + run.restarts.num_restarts


def test_random_losses_of_learner_and_workers_lose_no_group_and_train_none_twice() -> None:
    first = int(os.environ.get("CREDENCE_TEST_SEED", "0"))
    for seed in range(first, first + 100):
        try:
            check_interleaving(seed)
        except BaseException:
            print(f"failed with CREDENCE_TEST_SEED={seed}")
            raise
