"""What an update and an admission do, and what neither of them waits for or touches. Real transfers: tests/actors."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from system.errors import LearnerDiedError, SnapshotLostError, WeightSyncError
from system.runtime.pool_member import WorkerState
from tests.runtime.sync_fakes import TIMEOUT_SECONDS, World, make_world
from tests.virtual_time import run_in_virtual_time


def run(scenario: Callable[[World], Awaitable[None]], transfer: str = "broadcast") -> World:
    async def build() -> World:
        world = make_world(transfer=transfer)
        await scenario(world)
        return world

    return run_in_virtual_time(build(), seconds=1000)


def test_the_first_update_loads_from_the_store_and_the_second_one_broadcasts() -> None:
    async def scenario(world: World) -> None:
        a, b = world.start("a", "b")
        first = await world.sync.update(world.learner.publish())
        assert (first.num_receivers, first.num_from_store, first.policy_version) == (2, 2, 0)
        assert world.learner.events == []
        second = await world.sync.update(await world.learner.step())
        assert (second.num_receivers, second.num_from_store) == (2, 0)
        third = await world.sync.update(await world.learner.step())
        assert third.num_from_store == 0
        assert world.learner.events == ["open world=3", "broadcast 1", "broadcast 2"]
        assert a.generate() == b.generate() == (2, 2.0)
        assert {member.state for member in world.rollouts.members} == {WorkerState.SERVING}
        assert third.pause_seconds == 0.5

    run(scenario)


def test_with_transfer_store_no_group_is_ever_opened() -> None:
    async def scenario(world: World) -> None:
        (a,) = world.start("a")
        for _ in range(3):
            report = await world.sync.update(await world.learner.step())
            assert report.num_from_store == 1
        assert a.generate() == (3, 3.0)
        assert world.learner.events == []

    run(scenario, transfer="store")


def test_an_update_without_any_receiver_ends() -> None:
    async def scenario(world: World) -> None:
        report = await world.sync.update(world.learner.publish())
        assert report.num_receivers == 0
        assert report.canary_max_abs_diff is None  # nobody compared: not a difference of nothing
        assert report.proved_fraction is None

    run(scenario)


@pytest.mark.parametrize("moment", ["join_weight_group", "receive_broadcast"])
def test_the_death_of_one_receiver_in_a_broadcast_costs_no_other_one(moment: str) -> None:
    async def scenario(world: World) -> None:
        dying, b, c = world.start("dying", "b", "c")
        await world.sync.update(world.learner.publish())
        dying.dies_at = moment
        start = asyncio.get_running_loop().time()
        report = await world.sync.update(await world.learner.step())
        # the others are told at once, and do not wait for it until their deadline
        assert asyncio.get_running_loop().time() - start < 0.5 * TIMEOUT_SECONDS
        assert (report.num_receivers, report.num_from_store) == (2, 2)
        assert b.generate() == c.generate() == (1, 1.0)
        assert len(world.rollouts.removed) == 1
        assert world.rollouts.removed[0].startswith("rollout worker 0: ")
        # the group is opened again once the members are the same twice
        assert (await world.sync.update(await world.learner.step())).num_from_store == 2
        assert (await world.sync.update(await world.learner.step())).num_from_store == 0

    run(scenario)


def test_a_receiver_that_hangs_in_a_broadcast_is_replaced_and_the_others_load_from_the_store() -> None:
    async def scenario(world: World) -> None:
        hung, b = world.start("hung", "b")
        await world.sync.update(world.learner.publish())
        await world.sync.update(await world.learner.step())
        hung.is_hung = True
        await world.sync.update(await world.learner.step())
        assert b.generate() == (2, 2.0)
        assert [reason.split(":")[0] for reason in world.rollouts.removed] == ["rollout worker 0"]

    run(scenario)


def test_admission_touches_neither_the_learner_nor_another_receiver() -> None:
    async def scenario(world: World) -> None:
        (a,) = world.start("a")
        await world.sync.update(world.learner.publish())
        await world.sync.update(await world.learner.step())
        before = list(a.events), list(world.learner.events)
        new = world.receiver("new")
        member = world.rollouts.add(new)
        await world.sync.admit(member)
        assert member.state is WorkerState.SERVING
        assert new.generate() == (1, 1.0)
        assert (a.events, world.learner.events) == before

    run(scenario)


def test_admission_goes_on_while_a_long_train_step_runs() -> None:
    async def scenario(world: World) -> None:
        await world.sync.update(world.learner.publish())
        step = asyncio.create_task(world.learner.step(seconds=900))
        member = world.rollouts.add(world.receiver("new"))
        await world.sync.admit(member)
        assert member.state is WorkerState.SERVING
        assert not step.done()
        await world.sync.update(await step)
        assert member.actor.generate() == (1, 1.0)

    run(scenario)


def test_a_worker_whose_load_was_overtaken_by_a_new_version_loads_again_before_it_serves() -> None:
    async def scenario(world: World) -> None:
        await world.sync.update(world.learner.publish())
        new = world.receiver("new")
        new.load_seconds = 5.0
        member = world.rollouts.add(new)
        admission = asyncio.create_task(world.sync.admit(member))
        await asyncio.sleep(0.001)
        await world.sync.update(await world.learner.step())
        assert member.state is WorkerState.JOINING
        await admission
        assert new.events == ["load_weights", "load_weights"]
        assert new.generate() == (1, 1.0)

    run(scenario)


@pytest.mark.parametrize("fault", ["dies", "hangs", "canary"])
def test_a_replacement_that_fails_while_it_joins_blocks_nobody(fault: str) -> None:
    async def scenario(world: World) -> None:
        (a,) = world.start("a")
        await world.sync.update(world.learner.publish())
        new = world.receiver("new")
        new.dies_at = "load_weights" if fault == "dies" else ""
        new.is_hung = fault == "hangs"
        new.canary_error = 0.5 if fault == "canary" else 0.0
        member = world.rollouts.add(new)
        await world.sync.admit(member)
        assert member.state is WorkerState.GONE
        assert len(world.rollouts.removed) == 1
        await world.sync.update(await world.learner.step())
        assert a.generate() == (1, 1.0)

    run(scenario)


def test_a_worker_that_comes_before_the_first_publication_waits_for_it() -> None:
    async def scenario(world: World) -> None:
        member = world.rollouts.add(world.receiver("early"))
        admission = asyncio.create_task(world.sync.admit(member))
        await asyncio.sleep(1)
        await world.sync.update(world.learner.publish())
        await admission
        assert member.state is WorkerState.SERVING

    run(scenario)


def test_a_worker_does_not_wait_for_ever_for_a_first_publication() -> None:
    async def scenario(world: World) -> None:
        member = world.rollouts.add(world.receiver("early"))
        await world.sync.admit(member)
        assert member.state is WorkerState.GONE
        assert "no weights were published" in world.rollouts.removed[0]

    run(scenario)


def test_a_snapshot_that_died_with_its_learner_is_a_lost_load_and_not_a_lost_worker() -> None:
    async def scenario(world: World) -> None:
        await world.sync.update(world.learner.publish())
        world.store.lose_everything()
        member = world.rollouts.add(world.receiver("new"))
        with pytest.raises(SnapshotLostError):
            await world.sync.admit(member)
        assert member.state is WorkerState.JOINING
        assert world.rollouts.removed == []
        # a learner that is there again publishes, and the worker joins
        admission = asyncio.create_task(world.sync.admit(member))
        await asyncio.sleep(1)
        await world.sync.update(await world.learner.step())
        await admission
        assert member.actor.generate() == (1, 1.0)

    run(scenario)


def test_a_worker_that_joins_after_the_learners_death_ends_the_run_at_once() -> None:
    async def scenario(world: World) -> None:
        await world.sync.update(world.learner.publish())
        world.store.lose_everything()
        world.learner.is_dead = True
        member = world.rollouts.add(world.receiver("new"))
        start = asyncio.get_running_loop().time()
        with pytest.raises(LearnerDiedError):
            await world.sync.admit(member)
        assert asyncio.get_running_loop().time() - start < 1

    run(scenario)


def test_the_death_of_the_learner_in_a_broadcast_ends_the_update() -> None:
    async def scenario(world: World) -> None:
        world.start("a")
        await world.sync.update(world.learner.publish())
        manifest = await world.learner.step()
        world.learner.is_dead = True
        with pytest.raises(LearnerDiedError):
            await world.sync.update(manifest)

    run(scenario)


def test_a_receiver_with_other_log_probabilities_is_replaced_and_the_run_goes_on() -> None:
    async def scenario(world: World) -> None:
        wrong, b = world.start("wrong", "b")
        wrong.canary_error = 0.5
        await world.sync.update(world.learner.publish())
        assert [member.actor for member in world.rollouts.members] == [b]
        assert "differ from the learner's by 0.5 nats" in world.rollouts.removed[0]

    run(scenario)


def test_when_every_receiver_differs_at_the_start_the_run_ends_with_the_model_named() -> None:
    async def scenario(world: World) -> None:
        for receiver in world.start("a", "b"):
            receiver.canary_error = 0.5
        with pytest.raises(WeightSyncError, match="disagree on Qwen2ForCausalLM"):
            await world.sync.update(world.learner.publish())

    run(scenario)


def test_scoring_replicas_load_their_own_snapshot() -> None:
    async def scenario(world: World) -> None:
        (a,) = world.start("a")
        replicas = world.start("r", "s", pool=world.scoring)
        former = world.learner.publish()
        await world.sync.update(former)
        newest = replace(await world.learner.step(), scoring=former)
        report = await world.sync.update(newest)
        assert report.num_receivers == 3
        assert a.generate() == (1, 1.0)
        assert [replica.generate() for replica in replicas] == [(0, 0.0)] * 2

    run(scenario)
