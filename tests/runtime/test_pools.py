"""Who gets work, and what happens when a worker dies, with fakes in place of the actors."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from ray.exceptions import RayActorError

from system.errors import EngineFailedError
from system.records import CompletionGroup, Prompt, Sampling, ScoredGroup
from system.runtime.reward_pool import RewardPool
from system.runtime.rollout_pool import RolloutPool
from system.runtime.worker_pool import PoolExhaustedError, WorkerDiedError, WorkerState

PROMPT = Prompt(prompt_id="p", token_ids=np.array([1], np.int32), text="", reference_answer="", task="gsm8k_chains")
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, num_completions=1, seed=0)


@dataclass
class Remote:
    """Looks like a Ray method: `.remote(...)` gives an awaitable."""

    call: Callable[..., Awaitable[object]]

    def remote(self, *arguments: object) -> Awaitable[object]:
        return self.call(*arguments)


@dataclass
class FakeRollout:
    """Generates when its gate opens, or fails with `error`; `start_error` fails its start."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    start_error: Exception | None = None
    group_ids: list[int] = field(default_factory=list)
    is_killed: bool = False

    @property
    def start(self) -> Remote:
        async def call() -> int:
            if self.start_error is not None:
                raise self.start_error
            return 1

        return Remote(call)

    @property
    def generate(self) -> Remote:
        async def call(prompt: Prompt, group_id: int, sampling: Sampling) -> CompletionGroup:
            self.group_ids.append(group_id)
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            return CompletionGroup(group_id=group_id, prompt=prompt, completions=())

        return Remote(call)


def make_pool(actors: list[FakeRollout], *, max_restarts: int = 1) -> RolloutPool:
    waiting = list(actors)

    def kill(actor: FakeRollout) -> None:
        actor.is_killed = True

    return RolloutPool(
        create_actor=lambda name: waiting.pop(0),
        start_seconds=1.0,
        group_seconds=5.0,
        max_restarts=max_restarts,
        kill_actor=kill,
    )


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), timeout=10))


def test_joining_worker_gets_no_work_until_it_serves() -> None:
    async def scenario() -> None:
        actor = FakeRollout()
        actor.gate.set()
        pool = make_pool([actor])
        member = await pool.start_worker()
        group = asyncio.create_task(pool.generate(PROMPT, group_id=7, sampling=SAMPLING))
        await asyncio.sleep(0.05)
        assert actor.group_ids == []

        pool.serve(member)

        assert (await group).group_id == 7

    run(scenario)


def test_groups_go_to_the_least_loaded_worker() -> None:
    async def scenario() -> None:
        actors = [FakeRollout(), FakeRollout()]
        pool = make_pool(actors)
        for _ in actors:
            pool.serve(await pool.start_worker())

        groups = [asyncio.create_task(pool.generate(PROMPT, group_id=g, sampling=SAMPLING)) for g in range(4)]
        await asyncio.sleep(0.05)

        assert [len(actor.group_ids) for actor in actors] == [2, 2]
        for actor in actors:
            actor.gate.set()
        await asyncio.gather(*groups)
        assert pool.num_calls_in_flight == 0

    run(scenario)


def test_dead_worker_is_removed_and_its_group_handed_back() -> None:
    async def scenario() -> None:
        actor = FakeRollout(error=RayActorError())
        actor.gate.set()
        pool = make_pool([actor])
        member = await pool.start_worker()
        pool.serve(member)

        with pytest.raises(WorkerDiedError, match="rollout worker 0 died during 'generate group 3'"):
            await pool.generate(PROMPT, group_id=3, sampling=SAMPLING)

        assert member.state is WorkerState.GONE
        assert actor.is_killed
        assert pool.members == ()
        await asyncio.wait_for(pool.wait_for_shortage(1), timeout=1)

    run(scenario)


def test_removed_worker_hands_back_groups_that_are_still_running() -> None:
    async def scenario() -> None:
        actor = FakeRollout()
        pool = make_pool([actor])
        member = await pool.start_worker()
        pool.serve(member)
        group = asyncio.create_task(pool.generate(PROMPT, group_id=3, sampling=SAMPLING))
        await asyncio.sleep(0.05)

        pool.remove(member, reason="refused")

        with pytest.raises(WorkerDiedError, match="was removed"):
            await group

    run(scenario)


def test_worker_whose_engine_failed_is_removed_though_its_process_lives() -> None:
    async def scenario() -> None:
        actor = FakeRollout(error=EngineFailedError("the engine is gone"))
        actor.gate.set()
        pool = make_pool([actor])
        pool.serve(await pool.start_worker())

        with pytest.raises(WorkerDiedError, match="died during 'generate group 3'"):
            await pool.generate(PROMPT, group_id=3, sampling=SAMPLING)

        assert actor.is_killed

    run(scenario)


def test_worker_that_does_not_start_counts_as_lost() -> None:
    async def scenario() -> None:
        actor = FakeRollout(start_error=EngineFailedError("no such model"))
        pool = make_pool([actor], max_restarts=0)

        with pytest.raises(WorkerDiedError, match="rollout worker 0 did not start: no such model"):
            await pool.start_worker()

        assert actor.is_killed
        with pytest.raises(PoolExhaustedError, match="no such model"):
            await pool.wait_for_shortage(1)

    run(scenario)


def test_too_many_losses_end_the_run_and_name_the_last() -> None:
    async def scenario() -> None:
        pool = make_pool([FakeRollout(), FakeRollout()], max_restarts=1)
        for reason in ("digest differs", "no answer"):
            pool.remove(await pool.start_worker(), reason=reason)

        with pytest.raises(PoolExhaustedError, match="rollout.max_restarts=1. The last: rollout worker 1: no answer"):
            await pool.wait_for_shortage(1)

    run(scenario)


@dataclass
class FakeReward:
    """Scores when its gate opens; counts calls and dies on the first `num_deaths` of them."""

    gate: asyncio.Event
    calls: list[int]
    deaths_left: list[int]

    @property
    def start(self) -> Remote:
        async def call() -> None:
            return None

        return Remote(call)

    @property
    def score(self) -> Remote:
        async def call(groups: list[tuple[CompletionGroup, bool]]) -> list[ScoredGroup]:
            self.calls.append(len(groups))
            await self.gate.wait()
            if self.deaths_left[0] > 0:
                self.deaths_left[0] -= 1
                raise RayActorError
            return [
                ScoredGroup(group_id=group.group_id, prompt=group.prompt, completions=(), rewards=())
                for group, _ in groups
            ]

        return Remote(call)


async def score_five(*, num_deaths: int) -> tuple[list[ScoredGroup], list[int], int]:
    gate, calls = asyncio.Event(), []  # type: ignore[var-annotated]
    deaths_left = [num_deaths]
    pool = RewardPool(
        create_actor=lambda: FakeReward(gate, calls, deaths_left), num_workers=1, start_seconds=1.0, group_seconds=5.0
    )
    await pool.start()
    groups = [CompletionGroup(group_id=g, prompt=PROMPT, completions=()) for g in range(5)]
    first = asyncio.create_task(pool.score(groups[0]))
    await asyncio.sleep(0.05)
    rest = [asyncio.create_task(pool.score(group)) for group in groups[1:]]
    await asyncio.sleep(0.05)
    gate.set()
    return await asyncio.gather(first, *rest), calls, pool.num_restarts


def test_groups_that_wait_are_scored_in_one_call() -> None:
    async def scenario() -> None:
        scored, calls, num_restarts = await score_five(num_deaths=0)

        assert [group.group_id for group in scored] == [0, 1, 2, 3, 4]
        assert calls == [1, 4]
        assert num_restarts == 0

    run(scenario)


def test_groups_of_a_dead_reward_worker_are_scored_again() -> None:
    async def scenario() -> None:
        scored, _, num_restarts = await score_five(num_deaths=2)

        assert [group.group_id for group in scored] == [0, 1, 2, 3, 4]
        assert num_restarts == 2

    run(scenario)


def test_group_that_kills_every_reward_worker_is_an_error() -> None:
    async def scenario() -> None:
        with pytest.raises(RayActorError):
            await score_five(num_deaths=100)

    run(scenario)
