"""The buffer bounds staleness, hands out deterministic batches, refills dropped slots and never hangs on close."""

import asyncio
import random

import numpy as np
import pytest

from system.records import Prompt, ScoredGroup, TrajectoryGroup
from system.runtime.group_buffer import BufferClosedError, GroupBuffer, min_policy_version
from system.runtime.ledger import Ledger, LedgerError
from tests.trajectories import single_turn


def scored_group(group_id: int, *, versions: tuple[int, ...] = (0,)) -> ScoredGroup:
    """One completion per version, each of one token."""
    prompt = Prompt(
        prompt_id=str(group_id), token_ids=np.array([1], np.int32), text="1+1:", reference_answer="2", task="chains"
    )
    trajectories = tuple(
        single_turn([2], index=index, text="2", versions=[version]) for index, version in enumerate(versions)
    )
    group = TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=trajectories)
    return ScoredGroup(group=group, terms=((),) * len(trajectories))


async def is_granted(buffer: GroupBuffer) -> bool:
    """Whether a slot is granted at once (it stays reserved)."""
    try:
        await asyncio.wait_for(buffer.wait_for_slot(), timeout=0.01)
    except TimeoutError:
        return False
    return True


async def fill(buffer: GroupBuffer, ledger: Ledger, *, group_ids: range, version: int = 0) -> None:
    for group_id in group_ids:
        await asyncio.wait_for(buffer.wait_for_slot(), timeout=1)
        buffer.lease(group_id)
    for group_id in reversed(group_ids):
        ledger.mark_generated(group_id)
        buffer.put(scored_group(group_id, versions=(version,)))


def test_synchronous_run_leases_a_step_only_once_its_version_is_published() -> None:
    async def main() -> None:
        ledger = Ledger()
        buffer = GroupBuffer(ledger, prompts_per_step=2, max_staleness=0)
        await fill(buffer, ledger, group_ids=range(0, 2))
        assert not await is_granted(buffer)
        batch = await buffer.next_batch()
        assert not await is_granted(buffer)
        buffer.mark_trained(batch)
        assert not await is_granted(buffer)
        buffer.version_published(1)
        assert await is_granted(buffer)

    asyncio.run(main())


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_first_slots_reach_max_staleness_steps_ahead(max_staleness: int) -> None:
    async def main() -> int:
        buffer = GroupBuffer(Ledger(), prompts_per_step=2, max_staleness=max_staleness)
        num_granted = 0
        while await is_granted(buffer):
            buffer.lease(num_granted)
            num_granted += 1
        return num_granted

    assert asyncio.run(main()) == 2 * (max_staleness + 1)


def test_batch_takes_the_first_leased_groups_and_is_sorted_by_group_id() -> None:
    async def main() -> None:
        ledger = Ledger()
        buffer = GroupBuffer(ledger, prompts_per_step=2, max_staleness=2)
        for group_id in range(4):
            await buffer.wait_for_slot()
            buffer.lease(group_id)
            ledger.mark_generated(group_id)
        for group_id in (3, 1, 0, 2):
            buffer.put(scored_group(group_id))
        assert [group.group_id for group in await buffer.next_batch()] == [0, 1]
        assert [group.group_id for group in await buffer.next_batch()] == [2, 3]

    asyncio.run(main())


def test_batch_waits_for_a_slow_group_that_the_next_batch_could_not_take() -> None:
    async def main() -> None:
        ledger = Ledger()
        buffer = GroupBuffer(ledger, prompts_per_step=1, max_staleness=1)
        for group_id in (0, 1):
            await buffer.wait_for_slot()
            buffer.lease(group_id)
            ledger.mark_generated(group_id)
        buffer.put(scored_group(1))  # group 1 overtakes group 0: batch 1 may still take both
        buffer.mark_trained(await buffer.next_batch())
        buffer.version_published(1)
        await buffer.wait_for_slot()
        buffer.lease(2)
        ledger.mark_generated(2)
        buffer.put(scored_group(2, versions=(1,)))
        waiting = asyncio.create_task(buffer.next_batch())
        await asyncio.sleep(0)
        assert not waiting.done()  # batch 2 could not take group 0 any more
        buffer.put(scored_group(0))
        assert [group.group_id for group in await waiting] == [0]
        assert ledger.totals().dropped == 0

    asyncio.run(main())


def test_batch_goes_on_when_the_slow_group_is_dropped() -> None:
    async def main() -> None:
        ledger = Ledger()
        for group_id in (0, 1):
            ledger.lease(group_id)
        buffer = GroupBuffer(ledger, prompts_per_step=1, max_staleness=0)  # as a resumed run finds them
        ledger.mark_generated(0)
        buffer.put(scored_group(0))
        waiting = asyncio.create_task(buffer.next_batch())
        await asyncio.sleep(0)
        assert not waiting.done()
        buffer.drop(1, reason="timeout")
        assert [group.group_id for group in await asyncio.wait_for(waiting, timeout=1)] == [0]

    asyncio.run(main())


def test_prefetched_batch_is_judged_by_the_version_it_will_train() -> None:
    async def main() -> None:
        ledger = Ledger()
        buffer = GroupBuffer(ledger, prompts_per_step=1, max_staleness=1)
        await fill(buffer, ledger, group_ids=range(0, 2))
        await buffer.next_batch()
        await buffer.next_batch()  # trains from version 1: version 0 is one behind and still allowed
        buffer.mark_trained([scored_group(0)])
        buffer.version_published(1)
        await fill(buffer, ledger, group_ids=range(2, 3), version=0)
        waiting = asyncio.create_task(buffer.next_batch())  # would train from version 2
        await asyncio.sleep(0)
        assert not waiting.done()
        assert ledger.totals().dropped_by_reason == {"stale": 1}
        buffer.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_dropped_group_frees_its_slot() -> None:
    async def main() -> None:
        ledger = Ledger()
        buffer = GroupBuffer(ledger, prompts_per_step=1, max_staleness=0)
        await buffer.wait_for_slot()
        buffer.lease(0)
        waiting = asyncio.create_task(buffer.wait_for_slot())
        await asyncio.sleep(0)
        assert not waiting.done()
        buffer.drop(0, reason="timeout")
        await asyncio.wait_for(waiting, timeout=1)
        buffer.lease(1)
        assert ledger.totals().dropped_by_reason == {"timeout": 1}

    asyncio.run(main())


def test_one_free_slot_goes_to_one_of_two_waiters() -> None:
    async def main() -> None:
        ledger = Ledger()
        buffer = GroupBuffer(ledger, prompts_per_step=1, max_staleness=0)
        waiters = [asyncio.create_task(buffer.wait_for_slot()) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert sorted(waiter.done() for waiter in waiters) == [False, True]
        buffer.release_slot()
        await asyncio.wait_for(asyncio.gather(*waiters), timeout=1)

    asyncio.run(main())


def test_no_slot_is_granted_beyond_the_last_update() -> None:
    async def main() -> None:
        ledger = Ledger()
        buffer = GroupBuffer(ledger, prompts_per_step=2, max_staleness=5, num_updates=1)
        await fill(buffer, ledger, group_ids=range(0, 2))
        assert not await is_granted(buffer)
        buffer.drop(0, reason="timeout")
        assert await is_granted(buffer)

    asyncio.run(main())


def test_restored_buffer_counts_groups_in_flight() -> None:
    async def main() -> None:
        ledger = Ledger()
        for group_id in range(7):
            ledger.lease(group_id)
        for group_id in range(6):
            ledger.drop(group_id, reason="timeout")
        restored = Ledger.restore(ledger.state())
        buffer = GroupBuffer(restored, prompts_per_step=2, max_staleness=0, published_version=3)
        assert restored.in_flight_group_ids() == (6,)
        assert await is_granted(buffer)
        buffer.lease(7)
        assert not await is_granted(buffer)
        for group_id in (6, 7):
            restored.mark_generated(group_id)
            buffer.put(scored_group(group_id, versions=(3,)))
        assert [group.group_id for group in await buffer.next_batch()] == [6, 7]

    asyncio.run(main())


def test_restored_groups_that_no_batch_has_room_for_are_dropped_as_stale() -> None:
    async def main() -> None:
        ledger = Ledger()
        for group_id in range(3):
            ledger.lease(group_id)
        buffer = GroupBuffer(ledger, prompts_per_step=1, max_staleness=0)  # the run before had larger batches
        for group_id in range(3):
            ledger.mark_generated(group_id)
            buffer.put(scored_group(group_id))
        batch = await asyncio.wait_for(buffer.next_batch(), timeout=1)
        assert [group.group_id for group in batch] == [0]
        buffer.mark_trained(batch)
        buffer.version_published(1)
        waiting = asyncio.create_task(buffer.next_batch())
        await asyncio.sleep(0)
        assert ledger.totals().dropped_by_reason == {"stale": 2}
        await fill(buffer, ledger, group_ids=range(3, 4), version=1)
        assert [group.group_id for group in await asyncio.wait_for(waiting, timeout=1)] == [3]

    asyncio.run(main())


def test_close_wakes_every_waiter() -> None:
    async def main() -> None:
        buffer = GroupBuffer(Ledger(), prompts_per_step=1, max_staleness=0)
        await buffer.wait_for_slot()
        waits = [
            asyncio.create_task(wait) for wait in (buffer.wait_for_slot(), buffer.next_batch(), buffer.next_batch())
        ]
        await asyncio.sleep(0)
        buffer.close()
        await asyncio.wait(waits, timeout=1)
        assert all(wait.cancelled() for wait in waits)
        with pytest.raises(BufferClosedError):
            await buffer.wait_for_slot()

    asyncio.run(main())


def test_group_is_put_once_and_only_after_generation() -> None:
    async def main() -> None:
        ledger = Ledger()
        buffer = GroupBuffer(ledger, prompts_per_step=1, max_staleness=0)
        await buffer.wait_for_slot()
        buffer.lease(0)
        with pytest.raises(LedgerError, match="needs generated"):
            buffer.put(scored_group(0))
        ledger.mark_generated(0)
        buffer.put(scored_group(0))
        with pytest.raises(LedgerError, match="group 0 is scored"):
            buffer.put(scored_group(0))
        assert buffer.num_ready == 1

    asyncio.run(main())


class RandomRun:
    """The controller's loops with random waits, deaths and drops; asserts the staleness bound at every batch."""

    def __init__(self, *, seed: int, prompts_per_step: int, max_staleness: int, num_updates: int) -> None:
        self.random = random.Random(seed)
        self.ledger = Ledger()
        self.max_staleness = max_staleness
        self.num_updates = num_updates
        self.buffer = GroupBuffer(
            self.ledger, prompts_per_step=prompts_per_step, max_staleness=max_staleness, num_updates=num_updates
        )
        self.prompts: asyncio.Queue[int] = asyncio.Queue()
        self.batches: asyncio.Queue[list[ScoredGroup]] = asyncio.Queue(maxsize=1)

    async def pause(self) -> None:
        for _ in range(self.random.choice((0, 0, 1, 2, 5, 20))):
            await asyncio.sleep(0)

    async def prompt_loop(self) -> None:
        group_id = 0
        while True:
            await self.buffer.wait_for_slot()
            await self.pause()
            self.buffer.lease(group_id)
            self.prompts.put_nowait(group_id)
            group_id += 1

    async def rollout_loop(self) -> None:
        while True:
            group_id = await self.prompts.get()
            first_version = self.buffer.published_version
            await self.pause()
            outcome = self.random.random()
            if outcome < 0.1:
                self.buffer.drop(group_id, reason="timeout")
                continue
            if outcome < 0.2:
                self.ledger.regenerate(group_id)
                first_version = self.buffer.published_version
                await self.pause()
            last_version = self.buffer.published_version
            self.ledger.mark_generated(group_id)
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
            assert max(version - min_policy_version(group) for group in batch) <= self.max_staleness
            await self.pause()
            self.buffer.mark_trained(batch)
            await self.pause()
            self.buffer.version_published(version + 1)
            assert self.ledger.is_balanced

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
    totals = run.ledger.totals()
    assert totals.trained == 30 * (1 + seed % 4)
    assert "stale" not in totals.dropped_by_reason
    run.ledger.drop_in_flight(reason="run_ended")
    assert run.ledger.totals().leased == run.ledger.totals().trained + run.ledger.totals().dropped
