"""The loops of a run over fakes that hold a version and a train step, in virtual time."""

import asyncio
import os
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from system.errors import CheckpointError, first_error
from system.records import OptimizerStep
from system.runtime.drop_watch import NothingToTrainError
from system.runtime.worker_failures import PoolExhaustedError
from tests.runtime.controller_fakes import FakeRun, make_config
from tests.virtual_time import run_in_virtual_time


def test_a_synchronous_run_trains_every_step_from_its_own_version() -> None:
    run = FakeRun(make_config())
    controller = run_in_virtual_time(run.run())
    assert run.learner.trained == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert [version for version, _ in run.reporter.lines] == [0, 1, 2, 3, 4]
    assert [line.get("eval/policy_version") for _, line in run.reporter.lines] == [0, None, 2, None, 4]
    assert run.learner.checkpoints == [2, 4]
    assert [state.ledger["in_flight"] for state in run.checkpoints.states] == [[], []]
    assert [line["staleness/max_versions"] for _, line in run.reporter.lines[1:]] == [0.0] * 4
    assert controller.outcome.stopped_by == "num_updates"


def test_a_batch_is_prepared_while_the_learner_trains_where_staleness_allows_it() -> None:
    run = FakeRun(
        make_config(controller__max_staleness=1, evaluation__every_updates="null", checkpoint__every_updates="null")
    )
    ready: list[int] = []

    async def slow_step() -> None:
        await asyncio.sleep(30.0)
        ready.append(run.buffer.num_in_state("training"))

    run.learner.pause = slow_step
    run_in_virtual_time(run.run())
    assert ready[:3] == [4, 4, 4]  # the batch of two that is trained, and the next one
    waits = [line["time/rollout_seconds"] + line["time/batch_seconds"] for _, line in run.reporter.lines[2:]]
    assert max(waits) < 1.0


def test_a_portion_is_trained_while_other_groups_of_its_batch_are_generated() -> None:
    run = FakeRun(make_config(batch__portions=2, evaluation__every_updates="null", checkpoint__every_updates="null"))
    states: list[tuple[int, int]] = []
    accumulate = run.learner.accumulate

    async def note(steps: Sequence[OptimizerStep]) -> None:
        states.append((run.buffer.num_in_state("training"), run.buffer.num_in_state("generating")))
        await accumulate(steps)

    run.learner.accumulate = note  # type: ignore[method-assign]
    run.random = Random(1)  # other pauses for the two groups of a batch
    run_in_virtual_time(run.run())
    assert run.learner.trained == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert [version for version, _ in run.learner.portions] == [0, 1, 2, 3]
    assert (1, 1) in states
    assert [line["batch/num_groups"] for _, line in run.reporter.lines[1:]] == [2.0] * 4
    assert [line["batch/num_sequences"] for _, line in run.reporter.lines[1:]] == [4.0] * 4


def test_an_evaluation_does_not_stop_generation() -> None:
    run = FakeRun(make_config(controller__max_staleness=1, run__num_updates=6))
    leased: dict[int, int] = {}
    log_update = run.reporter.log_update

    def note(policy_version: int, **values: Any) -> None:
        leased[policy_version] = run.buffer.totals().leased
        log_update(policy_version, **values)

    run.reporter.log_update = note  # type: ignore[method-assign]
    run_in_virtual_time(run.run())
    assert leased[2] == 8  # all that may be leased at version 2 was, when its evaluation had ended


def test_neither_training_nor_generation_waits_for_a_checkpoint_to_be_written() -> None:
    run = FakeRun(make_config(controller__max_staleness=1, run__num_updates=8, checkpoint__every_updates=3))
    versions: list[int] = []

    async def write() -> None:
        versions.append(run.learner.version)
        leased = run.buffer.totals().leased
        await asyncio.sleep(1000.0)
        if len(versions) == 1:  # the later ones have less of the run left
            assert run.learner.version > versions[0], "nothing was trained"
            assert run.buffer.totals().leased > leased, "nothing was generated"

    run.learner.writing = write
    run_in_virtual_time(run.run())
    assert run.learner.checkpoints == [3, 6, 8]
    assert [state.policy_version for state in run.checkpoints.states] == [3, 6, 8]
    waits = {version: line.get("time/checkpoint_seconds", 0.0) for version, line in run.reporter.lines}
    assert max(waits[version] for version in (4, 5, 6)) <= 3.0  # for the copy of version 3; after it, for its writing
    assert sum("checkpoint/write_seconds" in line for _, line in run.reporter.lines) >= 1


def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_its_reason() -> None:
    run = FakeRun(make_config())

    async def write() -> None:
        raise CheckpointError("learner rank 0 could not write its part of a checkpoint: No space left on device")

    run.learner.writing = write
    with pytest.raises(BaseExceptionGroup) as raised:
        run_in_virtual_time(run.run())
    assert "learner rank 0 could not write" in str(first_error(raised.value))
    assert run.checkpoints.states == []


def test_the_evaluation_of_the_saved_weights_is_saved_with_them() -> None:
    run = FakeRun(make_config(checkpoint__every_updates=1))
    run_in_virtual_time(run.run())
    evaluated = [(state.policy_version, state.evaluation) for state in run.checkpoints.states]
    assert evaluated == [(1, None), (2, {"eval/policy_version": 2}), (3, None), (4, {"eval/policy_version": 4})]


def test_max_seconds_end_a_run_that_waits_for_a_batch() -> None:
    run = FakeRun(make_config(run__max_seconds=100, controller__max_dropped_in_a_row=10**6), is_valid=lambda _: False)
    controller = run_in_virtual_time(run.run(), seconds=400.0)
    assert controller.outcome.stopped_by == "max_seconds"
    assert controller.outcome.after is not None
    assert run.buffer.totals().is_balanced


def test_a_run_without_a_valid_verdict_ends_and_says_why() -> None:
    run = FakeRun(make_config(controller__max_dropped_in_a_row=20), is_valid=lambda _: False)
    with pytest.raises(BaseExceptionGroup) as raised:
        run_in_virtual_time(run.run())
    error = first_error(raised.value)
    assert isinstance(error, NothingToTrainError)
    assert "20 groups in a row gave nothing to train on" in str(error)
    assert "no_valid_reward; invalid verdicts: verifier: timeout (40 times)" in str(error)
    assert "An example: prompt p" in str(error)
    assert run.buffer.totals().leased <= 22


def test_single_groups_without_a_verdict_are_replaced() -> None:
    run = FakeRun(make_config(controller__max_dropped_in_a_row=2), is_valid=lambda prompt: prompt % 3 != 0)
    run_in_virtual_time(run.run())
    assert run.buffer.totals().dropped_by_reason["no_valid_reward"] >= 3
    assert run.buffer.totals().trained == 8


def test_a_poison_prompt_becomes_a_dead_letter_and_the_run_goes_on() -> None:
    run = FakeRun(make_config(), poison=frozenset({3}))
    run_in_virtual_time(run.run())
    assert run.reporter.dead_letters == [2]  # group 2 has prompt 3
    assert all(3 not in step for step in run.learner.trained)
    assert run.buffer.totals().dropped_by_reason == {"poisoned": 1}
    assert run.pools.rollouts.num_removed == 3


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_step_whose_gradient_is_not_finite_is_left_out_and_no_version_is_published(max_staleness: int) -> None:
    run = FakeRun(make_config(controller__max_staleness=max_staleness))
    run.learner.not_finite = frozenset({3})
    run_in_virtual_time(run.run())
    trained = [prompt for step in run.learner.trained for prompt in step]
    assert (len(trained), 3 in trained) == (8, False)
    assert [version for version, _ in run.reporter.lines] == [0, 1, 2, 3, 4]
    assert run.buffer.totals().dropped_by_reason["skipped_step"] == 2


def test_more_deaths_than_max_restarts_end_the_run() -> None:
    run = FakeRun(make_config(rollout__max_restarts=1), poison=frozenset({3}))
    with pytest.raises(BaseExceptionGroup) as raised:
        run_in_virtual_time(run.run())
    assert isinstance(first_error(raised.value), PoolExhaustedError)


def test_a_report_that_fails_ends_the_run_with_its_reason() -> None:
    run = FakeRun(make_config())
    run.reporter.fails_at = 1
    with pytest.raises(BaseExceptionGroup) as raised:
        run_in_virtual_time(run.run())
    assert "the disk is full" in str(first_error(raised.value))


class RandomFaults:
    """Kills, hangs and resizes at random moments of a run, joins included."""

    def __init__(self, run: FakeRun, *, random: Random) -> None:
        self.run = run
        self.random = random
        self.num_faults = random.randrange(1, 6)

    async def loop(self) -> None:
        for _ in range(self.num_faults):
            await asyncio.sleep(self.random.choice((0.0, 0.05, 0.5, 2.0, 10.0)))
            living = [actor for actor in self.run.actors if not actor.is_dead]
            fault = self.random.random()
            if fault < 0.4 and living:
                self.random.choice(living).is_dead = True
            elif fault < 0.7 and living:
                self.random.choice(living).is_hung = True
            else:
                self.run.pools.rollouts.resize(self.random.randrange(1, 4))


def check_interleaving(seed: int) -> None:
    random = Random(seed)
    max_staleness, num_workers = random.randrange(3), random.randrange(1, 3)
    config = make_config(
        controller__max_staleness=max_staleness,
        rollout__num_workers=num_workers,
        batch__portions=random.randrange(1, 3),
    )
    run = FakeRun(config, random=random)
    faults = RandomFaults(run, random=random).loop()
    controller = run_in_virtual_time(run.run(faults=faults), seconds=10_000.0)
    trained = [prompt for step in run.learner.trained for prompt in step]
    totals = run.buffer.totals()
    assert (controller.outcome.policy_version, len(trained), totals.trained) == (4, 8, 8)
    assert len(set(trained)) == len(trained), "a group was trained twice"
    assert totals.is_balanced
    assert totals.in_flight == 0
    assert [version for version, _ in run.reporter.lines] == [0, 1, 2, 3, 4]
    poisoned = totals.dropped_by_reason.get("poisoned", 0)
    assert poisoned == len(run.reporter.dead_letters)
    if max_staleness == 0 and not poisoned:
        assert trained == list(range(1, 9))


NUM_INTERLEAVINGS = 1000


@pytest.mark.parametrize("block", range(10))
def test_random_steps_joins_deaths_hangs_and_drains_lose_no_group(block: int) -> None:
    first = int(os.environ.get("CREDENCE_TEST_SEED", "0"))
    for seed in range(first + block, first + NUM_INTERLEAVINGS, 10):
        try:
            check_interleaving(seed)
        except BaseException:
            print(f"failed with CREDENCE_TEST_SEED={seed}")
            raise
