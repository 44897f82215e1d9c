"""Groups come in the order of the prompts, a few at a time, and survive their workers."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from system.errors import first_error
from system.records import Prompt, Sampling, ScoredGroup, TrajectoryGroup
from system.runtime.pools import Pools
from system.runtime.sampler import answer_prompts
from system.runtime.worker_failures import PoolExhaustedError
from tests.fakes import FakeActor, FakeReward, make_pool, opened

SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, num_completions=4, seed=0)
PROMPTS = [
    Prompt(prompt_id=f"p{index}", token_ids=np.array([1], np.int32), text="", reference_answer="", task="")
    for index in range(8)
]


@dataclass(eq=False)
class SlowRollout(FakeActor):
    """Later groups are done sooner; dies at its call number `dies_at`, and of every group of `poison`."""

    dies_at: int | None = None
    poison: frozenset[int] = frozenset()
    group_ids: list[int] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0

    async def on_generate(self, prompt: Prompt, group_id: int, sampling: Sampling) -> TrajectoryGroup:
        self.group_ids.append(group_id)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        if len(self.group_ids) == self.dies_at or group_id in self.poison:
            self.is_dead = True
        await asyncio.sleep(0.01 * (8 - group_id))
        self.num_running -= 1
        return TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=())


def answer(*workers: SlowRollout, **settings: Any) -> tuple[list[int], int]:
    """The groups in the order in which they were handed over, and how many ended; one worker starts."""
    handed_over: list[int] = []
    done: list[None] = []

    async def scenario() -> None:
        rewards = make_pool([opened(FakeReward())], receives_weights=False, max_load=1, max_calls_at_once=16)
        pools = Pools(
            rollouts=make_pool(list(workers), receives_weights=False, **settings), rewards=rewards, scoring=None
        )
        await pools.start()

        async def score(group: TrajectoryGroup) -> ScoredGroup:
            scored: ScoredGroup = await rewards.call("score", group, False, what="score")
            return scored

        async with pools.supervised():
            await answer_prompts(
                PROMPTS,
                generator=pools,
                score=score,
                sampling=SAMPLING,
                on_group=lambda group: handed_over.append(group.group_id),
                on_done=lambda: done.append(None),
            )

    asyncio.run(asyncio.wait_for(scenario(), timeout=20))
    return handed_over, len(done)


def test_groups_are_handed_over_in_the_order_of_the_prompts_a_bounded_number_at_a_time() -> None:
    worker = SlowRollout()
    assert answer(worker, max_load=16) == (list(range(8)), 8)
    assert worker.most_running == 4  # 16 sequences are 4 groups of 4


def test_what_waits_does_not_run_into_the_deadline_of_a_group() -> None:
    # all together take 0.36 s, the slowest 0.08 s: submitted at once to the engine they would have timed out
    assert answer(SlowRollout(), max_load=4, call_seconds=0.2) == (list(range(8)), 8)


def test_a_worker_that_dies_is_replaced_and_its_groups_are_generated_again() -> None:
    second = SlowRollout()
    assert answer(SlowRollout(dies_at=3), second) == (list(range(8)), 8)
    assert {0, 1, 2} <= set(second.group_ids)


def test_a_group_that_every_worker_dies_of_is_left_out() -> None:
    workers = [SlowRollout(poison=frozenset({3})) for _ in range(4)]
    assert answer(*workers) == ([0, 1, 2, 4, 5, 6, 7], 8)


def test_too_many_deaths_end_the_work() -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        answer(SlowRollout(dies_at=1), SlowRollout(dies_at=1), max_restarts=1)
    assert isinstance(first_error(raised.value), PoolExhaustedError)
