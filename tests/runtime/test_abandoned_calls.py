"""Calls that nobody waits for any more are dropped, and their workers stay."""

import asyncio

import numpy as np
import pytest

from system.records import Prompt, Sampling, TrajectoryGroup
from system.runtime.pool_member import WorkerState
from system.runtime.worker_pool import WorkerPool
from tests.fakes import FakeRollout, make_pool, opened, serve_all

PROMPT = Prompt(prompt_id="p", token_ids=np.array([1], np.int32), text="", reference_answer="", task="gsm8k_chains")
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, num_completions=1, seed=0)


def generate(pool: WorkerPool, group_id: int) -> "asyncio.Task[TrajectoryGroup]":
    return asyncio.create_task(pool.call("generate", PROMPT, group_id, SAMPLING, what=f"group {group_id}", load=4))


def test_abandoned_calls_end_at_once_and_the_worker_is_free_for_others() -> None:
    async def scenario() -> None:
        actor = FakeRollout()
        pool = make_pool([actor], max_load=8)
        await serve_all(pool)
        groups = [generate(pool, group_id) for group_id in range(3)]
        await asyncio.sleep(0.02)
        assert (actor.group_ids, pool.num_waiting) == ([0, 1], 1)
        pool.abandon_calls()
        for group in groups:
            with pytest.raises(asyncio.CancelledError):
                await group
        await asyncio.sleep(0.02)
        [member] = pool.members
        assert (member.state, member.num_calls, member.load) == (WorkerState.SERVING, 0, 0)
        assert (pool.num_waiting, pool.num_removed) == (0, 0)
        opened(actor)
        assert (await generate(pool, 7)).group_id == 7
        assert actor.group_ids == [0, 1, 7]

    asyncio.run(asyncio.wait_for(scenario(), timeout=10))
