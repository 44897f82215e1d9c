"""Pools that grow and shrink while they work: who goes, who is waited for, and what is no loss."""

import asyncio
from collections.abc import Mapping

import pytest
from ray.exceptions import RayActorError

from system.errors import EngineFailedError
from system.runtime.actor_nodes import Location, Node
from system.runtime.pool_member import PoolMember, WorkerState, least_useful
from system.runtime.worker_pool import WorkerPool
from tests.fakes import FakeActor, FakeRollout, make_pool, opened, serve_all
from tests.runtime.test_worker_pool import admit, generate
from tests.virtual_time import run_in_virtual_time


async def until_serving(pool: WorkerPool, count: int) -> None:
    while pool.num_serving != count:
        await asyncio.sleep(0.01)


def test_a_worker_that_is_let_go_finishes_its_groups_and_gets_no_new_ones() -> None:
    async def scenario() -> None:
        actors = [FakeRollout(), FakeRollout()]
        pool = make_pool(list(actors), num_workers=2)
        await serve_all(pool)
        first, second = generate(pool, 0), generate(pool, 1)
        await asyncio.sleep(0.01)
        pool.resize(1)
        third = generate(pool, 2)
        await asyncio.sleep(0.01)
        going, staying = actors[1], actors[0]
        assert (going.group_ids, staying.group_ids) == ([1], [0, 2])
        assert not going.was_shut_down
        for actor in actors:
            actor.gate.set()
        assert [group.group_id for group in await asyncio.gather(first, second, third)] == [0, 1, 2]
        await asyncio.sleep(0.01)
        assert (going.was_shut_down, pool.num_removed, len(pool.workers)) == (True, 0, 1)

    run_in_virtual_time(scenario())


def test_now_hands_groups_back_which_is_neither_a_loss_nor_an_attempt() -> None:
    async def scenario() -> None:
        leaving = [FakeRollout() for _ in range(4)]
        pool = make_pool([*leaving, opened(FakeRollout())], num_workers=1, max_restarts=0)
        await serve_all(pool)
        supervising = asyncio.create_task(pool.supervise(admit))
        heard: list[str] = []
        group = asyncio.create_task(
            pool.call("generate", None, 7, None, what="generate group 7", on_retry=heard.append)
        )
        for actor in leaving:  # more often than a call may lose its worker
            while not actor.group_ids:
                await asyncio.sleep(0.01)
            pool.resize(0, now=True)
            await asyncio.sleep(0.01)
            assert actor.was_shut_down
            pool.resize(1)
        assert (await group).group_id == 7
        assert (len(heard), pool.num_removed) == (4, 0)
        supervising.cancel()

    run_in_virtual_time(scenario())


def test_now_also_hands_back_what_an_earlier_request_let_finish() -> None:
    async def scenario() -> None:
        slow, other = FakeRollout(), FakeRollout()
        pool = make_pool([other, slow], num_workers=2)
        await serve_all(pool)
        groups = [generate(pool, 0), generate(pool, 1)]
        await asyncio.sleep(0.01)
        pool.resize(1)
        await asyncio.sleep(0.01)
        assert [member.state for member in pool.workers] == [WorkerState.SERVING, WorkerState.DRAINING]
        pool.resize(1, now=True)
        other.gate.set()
        assert [group.group_id for group in await asyncio.gather(*groups)] == [0, 1]
        assert sorted(other.group_ids) == [0, 1]

    run_in_virtual_time(scenario())


def test_a_worker_that_dies_while_it_finishes_is_no_loss() -> None:
    async def scenario() -> None:
        actors = [FakeRollout(), FakeRollout()]
        pool = make_pool(list(actors), num_workers=2, max_restarts=0)
        await serve_all(pool)
        groups = [generate(pool, 0), generate(pool, 1)]
        await asyncio.sleep(0.01)
        pool.resize(1)
        actors[1].is_dead = True
        actors[0].gate.set()
        assert [group.group_id for group in await asyncio.gather(*groups)] == [0, 1]
        assert (pool.num_removed, len(pool.workers)) == (0, 1)

    run_in_virtual_time(scenario())


@pytest.mark.parametrize("error", [EngineFailedError("no memory left"), RayActorError()])
def test_added_workers_that_cannot_start_leave_the_pool_as_it_was(error: Exception) -> None:
    async def scenario() -> None:
        failing = [FakeRollout(start_error=error) for _ in range(6)]
        pool = make_pool([opened(FakeRollout()), *failing], max_restarts=0)
        await serve_all(pool)
        supervising = asyncio.create_task(pool.supervise(admit))
        pool.resize(2)
        while pool.desired == 2:
            await asyncio.sleep(0.01)
        assert (pool.desired, pool.num_serving, pool.num_removed) == (1, 1, 0)
        assert sum(actor.calls.count("start") for actor in failing) == 3
        assert (await generate(pool, 5)).group_id == 5
        supervising.cancel()

    run_in_virtual_time(scenario())


def test_one_that_replaces_an_added_worker_is_no_addition() -> None:
    async def scenario() -> None:
        first, added = opened(FakeRollout()), opened(FakeRollout())
        broken = FakeRollout(start_error=RayActorError())
        pool = make_pool([first, added, broken, opened(FakeRollout())], max_restarts=5)
        await serve_all(pool)
        supervising = asyncio.create_task(pool.supervise(admit))
        pool.resize(2)
        await until_serving(pool, 2)
        added.is_dead = True
        groups = [generate(pool, group_id) for group_id in range(2)]
        await asyncio.gather(*groups)
        await until_serving(pool, 2)
        assert pool.num_removed == 2  # the death, and the replacement that did not start
        supervising.cancel()

    run_in_virtual_time(scenario())


class FakeCluster:
    """Has room when it is told so; an actor that starts then has a node."""

    def __init__(self) -> None:
        self.has_room = False

    async def locate(self, actor: FakeActor, resources: Mapping[str, float]) -> Location:
        actor.is_hung = not self.has_room  # it cannot answer before it has a process
        if actor.is_hung:
            return Location(reason="no node has it free")
        return Location(node=Node(node_id="n1", address="10.0.0.7"))


def test_a_worker_that_waits_for_a_node_says_for_what_and_is_not_late() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        pool = make_pool(
            [opened(FakeRollout()), opened(FakeRollout(is_hung=True, poll_seconds=0.5))],
            max_restarts=0,
            start_seconds=20.0,
            resources={"CPU": 0.5, "GPU": 1},
            locate=cluster.locate,
        )
        cluster.has_room = True
        await serve_all(pool)
        cluster.has_room = False
        supervising = asyncio.create_task(pool.supervise(admit))
        pool.resize(2)
        await asyncio.sleep(1000.0)
        waiting = pool.workers[1]
        assert (waiting.state, waiting.node) == (WorkerState.STARTING, None)
        assert waiting.waits_for == "{CPU: 0.5, GPU: 1}: no node has it free"
        cluster.has_room = True
        await until_serving(pool, 2)
        assert waiting.waits_for is None
        assert waiting.node == Node(node_id="n1", address="10.0.0.7")
        supervising.cancel()

    run_in_virtual_time(scenario())


def test_a_worker_that_hangs_on_its_node_is_late() -> None:
    async def locate(actor: FakeActor, resources: Mapping[str, float]) -> Location:
        return Location(node=Node(node_id="n1", address="10.0.0.7"))

    async def scenario() -> None:
        hung = FakeRollout(is_hung=True, poll_seconds=1.0)
        pool = make_pool([hung, opened(FakeRollout())], start_seconds=20.0, locate=locate)
        await pool.start()
        assert (hung.is_dead, pool.num_removed) == (True, 1)
        assert "did not finish 'start' within 20 s" in pool.losses.last_reason

    run_in_virtual_time(scenario())


def test_a_worker_that_waits_for_a_node_is_the_first_to_be_let_go() -> None:
    async def scenario() -> None:
        cluster = FakeCluster()
        cluster.has_room = True
        waiting = FakeRollout(is_hung=True)
        pool = make_pool([opened(FakeRollout()), waiting], locate=cluster.locate, max_restarts=0)
        await serve_all(pool)
        cluster.has_room = False
        supervising = asyncio.create_task(pool.supervise(admit))
        pool.resize(2)
        await asyncio.sleep(30.0)
        pool.resize(1)
        await asyncio.sleep(30.0)
        assert (waiting.is_dead, pool.num_removed, pool.num_serving, len(pool.workers)) == (True, 0, 1, 1)
        supervising.cancel()

    run_in_virtual_time(scenario())


def test_the_least_useful_worker_goes_first() -> None:
    pool = make_pool([])
    starting, serving = WorkerState.STARTING, WorkerState.SERVING

    def member(name: str, state: WorkerState, *, load: int = 0, waits_for: str | None = None) -> PoolMember:
        return PoolMember(name=name, actor=None, pool=pool, state=state, load=load, waits_for=waits_for)

    members = [
        member("old and idle", serving),
        member("busy", serving, load=8),
        member("loading", WorkerState.JOINING),
        member("starting", starting),
        member("waiting", starting, waits_for="{CPU: 1}: no node has it free"),
        member("new and idle", serving),
    ]
    order = ["waiting", "starting", "loading", "new and idle", "old and idle", "busy"]
    assert [each.name for each in least_useful(members)] == order
