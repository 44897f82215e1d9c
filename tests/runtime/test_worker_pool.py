"""Who gets work, and what happens when a worker dies, hangs, is refused or is too many."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from ray.exceptions import ObjectLostError, RayActorError, RaySystemError

from system.errors import EngineFailedError
from system.records import Prompt, Sampling, TrajectoryGroup
from system.runtime.pool_member import PoolMember, WorkerState
from system.runtime.worker_failures import PoisonedCallError, PoolExhaustedError, WorkerDiedError
from system.runtime.worker_pool import WorkerPool
from tests.fakes import FakeReward, FakeRollout, make_pool, opened, serve_all

PROMPT = Prompt(prompt_id="p", token_ids=np.array([1], np.int32), text="", reference_answer="", task="gsm8k_chains")
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, num_completions=1, seed=0)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), timeout=10))


def generate(pool: WorkerPool, group_id: int, *, load: int = 1) -> "asyncio.Task[TrajectoryGroup]":
    return asyncio.create_task(
        pool.call("generate", PROMPT, group_id, SAMPLING, what=f"generate group {group_id}", load=load)
    )


async def admit(member: PoolMember) -> None:
    member.pool.serve(member)


def test_joining_worker_gets_no_work_until_it_serves() -> None:
    async def scenario() -> None:
        actor = opened(FakeRollout())
        pool = make_pool([actor])
        await pool.start()
        group = generate(pool, 7)
        await asyncio.sleep(0.02)
        assert actor.group_ids == []
        pool.serve(pool.members[0])
        assert (await group).group_id == 7

    run(scenario)


def test_calls_go_to_the_least_loaded_worker_and_wait_when_all_are_full() -> None:
    async def scenario() -> None:
        actors = [FakeRollout(), FakeRollout()]
        pool = make_pool(list(actors), num_workers=2, max_load=8)
        await serve_all(pool)
        groups = [generate(pool, group_id, load=4) for group_id in range(7)]
        await asyncio.sleep(0.02)
        assert [actor.num_running for actor in actors] == [2, 2]
        assert (pool.num_waiting, pool.num_calls_in_flight) == (3, 4)
        for actor in actors:
            actor.gate.set()
        assert [group.group_id for group in await asyncio.gather(*groups)] == list(range(7))
        assert max(actor.most_running for actor in actors) == 2

    run(scenario)


def test_a_call_larger_than_a_worker_goes_to_an_empty_one() -> None:
    async def scenario() -> None:
        pool = make_pool([opened(FakeRollout())], max_load=8)
        await serve_all(pool)
        groups = [generate(pool, group_id, load=100) for group_id in range(3)]
        assert [group.group_id for group in await asyncio.gather(*groups)] == [0, 1, 2]

    run(scenario)


def test_a_deadline_begins_when_a_worker_has_the_call() -> None:
    async def scenario() -> None:
        actor = FakeRollout()
        pool = make_pool([actor], max_load=1, call_seconds=0.3)
        await serve_all(pool)
        groups = [generate(pool, group_id) for group_id in range(4)]
        for _ in groups:  # all four take 0.6 s together, each of them 0.15 s
            await asyncio.sleep(0.15)
            actor.gate.set()
            await asyncio.sleep(0.005)
            actor.gate.clear()
        await asyncio.gather(*groups)
        assert pool.num_removed == 0

    run(scenario)


@pytest.mark.parametrize(
    "error",
    [
        RayActorError(),
        EngineFailedError("the engine is gone"),
        ObjectLostError("0" * 40, None, ""),
        RaySystemError("the raylet is gone"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_call_of_a_dead_worker_is_made_again_by_its_replacement(error: Exception) -> None:
    async def scenario() -> None:
        dying, second = opened(FakeRollout(error=error)), opened(FakeRollout())
        pool = make_pool([dying, second])
        await serve_all(pool)
        supervising = asyncio.create_task(pool.supervise(admit))
        assert (await generate(pool, 3)).group_id == 3
        assert (dying.is_dead, second.group_ids, pool.num_removed) == (True, [3], 1)
        supervising.cancel()

    run(scenario)


def test_a_worker_that_does_not_answer_is_dead() -> None:
    async def scenario() -> None:
        hung, second = opened(FakeRollout()), opened(FakeRollout())
        pool = make_pool([hung, second], call_seconds=0.1)
        await serve_all(pool)
        supervising = asyncio.create_task(pool.supervise(admit))
        hung.is_hung = True
        assert (await generate(pool, 3)).group_id == 3
        assert hung.is_dead
        supervising.cancel()

    run(scenario)


def test_what_a_method_raises_is_no_death() -> None:
    async def scenario() -> None:
        pool = make_pool([opened(FakeRollout(error=ValueError("a prompt of 0 tokens")))])
        await serve_all(pool)
        with pytest.raises(ValueError, match="0 tokens"):
            await generate(pool, 3)
        assert (pool.num_serving, pool.num_removed) == (1, 0)

    run(scenario)


def test_calls_of_a_removed_worker_are_made_again_and_count_no_attempt() -> None:
    async def scenario() -> None:
        actors = [FakeRollout() for _ in range(4)] + [opened(FakeRollout())]
        pool = make_pool(list(actors), max_restarts=4)
        await serve_all(pool)
        supervising = asyncio.create_task(pool.supervise(admit))
        group = generate(pool, 3)
        for actor in actors[:4]:
            while not actor.group_ids:
                await asyncio.sleep(0.001)
            pool.remove(pool.members[0], reason="its digest differs")
        assert (await group).group_id == 3
        supervising.cancel()

    run(scenario)


def test_first_start_that_fails_is_an_error_and_counts() -> None:
    async def scenario() -> None:
        actor = FakeRollout(start_error=EngineFailedError("no such model"))
        pool = make_pool([actor], max_restarts=0)
        with pytest.raises(ExceptionGroup) as raised:
            await pool.start()
        assert isinstance(raised.value.exceptions[0], WorkerDiedError)
        assert "rollout worker 0 did not start: no such model" in str(raised.value.exceptions[0])
        assert actor.is_dead
        with pytest.raises(PoolExhaustedError, match="no such model"):
            await generate(pool, 1)

    run(scenario)


def test_a_process_that_dies_in_the_first_start_is_replaced() -> None:
    async def scenario() -> None:
        pool = make_pool([FakeRollout(start_error=RayActorError()), opened(FakeRollout())], max_restarts=1)
        await pool.start()
        assert pool.members == ()
        supervising = asyncio.create_task(pool.supervise(admit))
        group: TrajectoryGroup = await generate(pool, 1)
        assert group.group_id == 1
        assert pool.num_removed == 1
        supervising.cancel()

    run(scenario)


def test_a_replacement_whose_engine_refuses_before_anybody_started_ends_the_run() -> None:
    async def scenario() -> None:
        refusing = FakeRollout(start_error=EngineFailedError("no such model"))
        pool = make_pool([FakeRollout(start_error=RayActorError()), refusing], max_restarts=9)
        await pool.start()
        with pytest.raises(ExceptionGroup) as raised:
            await pool.supervise(admit)
        assert "rollout worker 1 did not start: no such model" in str(raised.value.exceptions[0])

    run(scenario)


def test_a_worker_that_hangs_in_the_first_start_is_replaced_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("system.runtime.worker_start._HOPELESS_SECONDS", 0.12)

    async def scenario() -> None:
        hanging = [FakeRollout(is_hung=True) for _ in range(5)]
        pool = make_pool([*hanging[:2], opened(FakeRollout())], max_restarts=9, start_seconds=0.05)
        await pool.start()
        supervising = asyncio.create_task(pool.supervise(admit))
        group: TrajectoryGroup = await generate(pool, 1)
        assert group.group_id == 1
        supervising.cancel()
        pool = make_pool(list(hanging[2:]), max_restarts=9, start_seconds=0.05)
        await pool.start()
        with pytest.raises(ExceptionGroup) as raised:
            await pool.supervise(admit)
        assert "did not finish 'start' within 0.05 s" in str(raised.value.exceptions[0])

    run(scenario)


def test_the_only_worker_dies_and_its_replacements_die_while_they_join_until_the_pool_is_exhausted() -> None:
    async def scenario() -> None:
        pool = make_pool([opened(FakeRollout()) for _ in range(4)], max_restarts=3)
        await serve_all(pool)

        async def die_while_joining(member: PoolMember) -> None:
            member.actor.is_dead = True
            await member.actor.join.remote()

        supervising = asyncio.create_task(pool.supervise(die_while_joining))
        waiting = generate(pool, 3)
        await asyncio.sleep(0.02)
        pool.members[0].actor.is_dead = True
        later = generate(pool, 4)
        pool.remove(pool.members[0], reason="killed")
        with pytest.raises(ExceptionGroup) as raised:
            await supervising
        assert isinstance(raised.value.exceptions[0], PoolExhaustedError)
        assert "4 rollout workers were lost" in str(raised.value.exceptions[0])
        assert (await waiting).group_id == 3
        with pytest.raises(PoolExhaustedError, match="rollout.max_restarts=3. The last: rollout worker 3: it did not"):
            await later

    run(scenario)


def test_a_worker_that_hangs_while_it_joins_is_replaced() -> None:
    async def scenario() -> None:
        pool = make_pool([FakeRollout(), FakeRollout(), opened(FakeRollout())], start_seconds=0.1)
        await serve_all(pool)

        async def admit_second(member: PoolMember) -> None:
            if member.name == "rollout worker 1":
                await asyncio.Event().wait()
            pool.serve(member)

        supervising = asyncio.create_task(pool.supervise(admit_second))
        pool.remove(pool.members[0], reason="killed")
        assert (await generate(pool, 3)).group_id == 3
        assert pool.num_removed == 2
        supervising.cancel()

    run(scenario)


def test_a_failure_of_the_pool_itself_ends_the_run_with_its_reason() -> None:
    async def scenario() -> None:
        pool = make_pool([opened(FakeRollout(error=RayActorError())), opened(FakeRollout())])
        await serve_all(pool)
        supervising = asyncio.create_task(pool.supervise(admit))

        def fail(reason: str) -> None:
            raise RuntimeError("the ledger refuses this")

        call = asyncio.create_task(pool.call("generate", PROMPT, 3, SAMPLING, what="generate", on_retry=fail))
        with pytest.raises(ExceptionGroup) as raised:
            await supervising
        assert "the ledger refuses this" in str(raised.value.exceptions[0])
        call.cancel()

    run(scenario)


def test_a_call_that_kills_three_workers_is_poison_and_its_neighbours_come_through() -> None:
    async def scenario() -> None:
        actors = [opened(FakeRollout(poison=frozenset({5}))) for _ in range(4)]
        for actor in actors[:2]:
            actor.gate.clear()  # the neighbours are under way when the poisoned call kills the worker
        pool = make_pool(list(actors))
        await serve_all(pool)
        supervising = asyncio.create_task(pool.supervise(admit))
        deaths: list[str] = []
        others = [generate(pool, group_id) for group_id in range(4)]
        with pytest.raises(PoisonedCallError, match="'generate group 5' lost its worker 3 times") as raised:
            await pool.call("generate", PROMPT, 5, SAMPLING, what="generate group 5", on_retry=deaths.append)
        assert (len(raised.value.errors), len(deaths)) == (3, 2)
        assert [group.group_id for group in await asyncio.gather(*others)] == [0, 1, 2, 3]
        assert actors[2].group_ids.count(5) == 1
        assert actors[2].most_running == 1  # suspects get a worker for themselves
        assert pool.num_removed == 3
        supervising.cancel()

    run(scenario)


REWARDS = {"kind": "reward worker", "section": "reward", "receives_weights": False, "is_exclusive": True,
           "max_load": 1, "max_calls_at_once": 16, "max_shared_attempts": 1}  # fmt: skip


def score(pool: WorkerPool, group_id: int) -> "asyncio.Task[object]":
    group = TrajectoryGroup(group_id=group_id, prompt=PROMPT, trajectories=())
    return asyncio.create_task(pool.call("score", group, False, what=f"verify group {group_id}"))


def test_groups_that_wait_are_scored_in_one_call() -> None:
    async def scenario() -> None:
        actor = FakeReward()
        pool = make_pool([actor], **REWARDS)
        await pool.start()
        groups = [score(pool, 0)]
        await asyncio.sleep(0.01)
        groups += [score(pool, group_id) for group_id in range(1, 20)]
        await asyncio.sleep(0.01)
        actor.gate.set()
        await asyncio.gather(*groups)
        assert actor.batches == [[0], list(range(1, 17)), [17, 18, 19]]

    run(scenario)


def test_a_poisoned_reward_call_uses_up_no_attempt_of_its_neighbours() -> None:
    async def scenario() -> None:
        actors = [FakeReward(poison=frozenset({2})) for _ in range(4)]
        pool = make_pool(list(actors), **REWARDS)
        await pool.start()
        supervising = asyncio.create_task(pool.supervise(None))
        groups = [score(pool, 9)]
        await asyncio.sleep(0.01)
        groups += [score(pool, group_id) for group_id in range(4)]
        for actor in actors:
            actor.gate.set()
        answers = await asyncio.gather(*groups, return_exceptions=True)
        assert [isinstance(answer, PoisonedCallError) for answer in answers] == [False, False, False, True, False]
        assert actors[0].batches == [[9], [0, 1, 2, 3]]
        assert all(len(batch) == 1 for actor in actors[1:] for batch in actor.batches)
        assert pool.num_removed == 3
        supervising.cancel()

    run(scenario)


def test_a_resized_pool_starts_what_is_missing_and_lets_the_rest_finish() -> None:
    async def scenario() -> None:
        actors = [FakeRollout() for _ in range(3)]
        pool = make_pool(list(actors))
        await serve_all(pool)
        supervising = asyncio.create_task(pool.supervise(admit))
        pool.resize(3)
        while pool.num_serving < 3:
            await asyncio.sleep(0.001)
        groups = [generate(pool, group_id) for group_id in range(6)]
        await asyncio.sleep(0.01)
        pool.resize(1)
        await asyncio.sleep(0.01)
        assert (pool.num_serving, pool.num_calls_in_flight) == (1, 6)
        groups.append(generate(pool, 6))
        for actor in actors:
            actor.gate.set()
        assert [group.group_id for group in await asyncio.gather(*groups)] == list(range(7))
        await asyncio.sleep(0.01)
        assert sorted(actor.was_shut_down for actor in actors) == [False, True, True]
        assert (pool.num_removed, len(pool.members), pool.members[0].state) == (0, 1, WorkerState.SERVING)
        supervising.cancel()

    run(scenario)
