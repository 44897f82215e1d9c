"""The staleness bound of the buffer under random interleavings of its loops."""

import asyncio
import random

import pytest

from system.records import ScoredGroup
from system.runtime.group_buffer import GroupBuffer
from tests.runtime.test_group_buffer import PROMPT, scored_group


class RandomRun:
    """The controller's loops with random waits, deaths and drops; asserts the staleness bound at every batch."""

    def __init__(self, *, seed: int, prompts_per_step: int, max_staleness: int, num_updates: int) -> None:
        self.random = random.Random(seed)
        self.max_staleness = max_staleness
        self.num_updates = num_updates
        self.buffer = GroupBuffer(
            prompts_per_step=prompts_per_step, max_staleness=max_staleness, num_updates=num_updates
        )
        self.prompts: asyncio.Queue[int] = asyncio.Queue()
        self.batches: asyncio.Queue[list[ScoredGroup]] = asyncio.Queue(maxsize=1)

    async def pause(self) -> None:
        for _ in range(self.random.choice((0, 0, 1, 2, 5, 20))):
            await asyncio.sleep(0)

    async def prompt_loop(self) -> None:
        while True:
            record = await self.buffer.lease(lambda: PROMPT)
            await self.pause()
            self.prompts.put_nowait(record.group_id)

    async def rollout_loop(self) -> None:
        while True:
            group_id = await self.prompts.get()
            self.buffer.start_generating(group_id)
            first_version = self.buffer.published_version
            await self.pause()
            outcome = self.random.random()
            if outcome < 0.1:
                self.buffer.drop(group_id, reason="timeout")
                continue
            if outcome < 0.2:
                self.buffer.generate_again(group_id)
                first_version = self.buffer.published_version
                await self.pause()
            last_version = self.buffer.published_version
            self.buffer.start_scoring(group_id)
            await self.pause()
            self.buffer.put(scored_group(group_id, versions=(last_version, first_version)))

    async def batch_loop(self) -> None:
        while True:
            await self.batches.put(await self.buffer.next_batch())

    async def train_loop(self) -> None:
        for version in range(self.num_updates):
            batch = await self.batches.get()
            ids = [group.group_id for group in batch]
            assert ids == sorted(ids)
            assert max(version - scored.group.min_policy_version for scored in batch) <= self.max_staleness
            await self.pause()
            self.buffer.mark_trained(batch)
            await self.pause()
            self.buffer.version_published(version + 1)
            assert self.buffer.totals().is_balanced

    async def run(self) -> None:
        loops = [self.prompt_loop(), *(self.rollout_loop() for _ in range(4)), self.batch_loop()]
        tasks = [asyncio.create_task(loop) for loop in loops]
        await asyncio.wait_for(self.train_loop(), timeout=20)
        self.buffer.close()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_staleness_bound_holds_under_random_interleavings(seed: int, max_staleness: int) -> None:
    run = RandomRun(seed=seed, prompts_per_step=1 + seed % 4, max_staleness=max_staleness, num_updates=30)
    asyncio.run(run.run())
    totals = run.buffer.totals()
    assert totals.trained == 30 * (1 + seed % 4)
    assert "stale" not in totals.dropped_by_reason
    run.buffer.drop_all(reason="run_ended")
    assert run.buffer.totals().leased == run.buffer.totals().trained + run.buffer.totals().dropped
