"""The buffer bounds staleness, hands out deterministic batches, refills dropped slots and never hangs on close."""

import asyncio
import json
from collections.abc import Callable

import numpy as np
import pytest

from system.records import Prompt, ScoredGroup, TrajectoryGroup
from system.runtime.group_buffer import BufferClosedError, GroupBuffer, GroupState, GroupStateError
from system.runtime.ledger import LedgerState
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


PROMPT = Prompt(prompt_id="p", token_ids=np.array([1], np.int32), text="1+1:", reference_answer="2", task="chains")


def make_buffer(*, prompts_per_step: int, max_staleness: int = 0, num_updates: int | None = None) -> GroupBuffer:
    return GroupBuffer(prompts_per_step=prompts_per_step, max_staleness=max_staleness, num_updates=num_updates)


def restored_buffer(group_ids: range, *, prompts_per_step: int, published_version: int = 0) -> GroupBuffer:
    """As a resumed run finds it: these groups were in flight."""
    num_leased = group_ids.stop
    return GroupBuffer(
        prompts_per_step=prompts_per_step,
        max_staleness=0,
        published_version=published_version,
        restored=LedgerState(
            leased=num_leased,
            generated=0,
            scored=0,
            trained=0,
            regenerated=0,
            dropped={"timeout": group_ids.start} if group_ids.start else {},
            in_flight=list(group_ids),
            last_group_id=num_leased - 1,
        ),
        outstanding=dict.fromkeys(group_ids, PROMPT),
    )


async def lease(buffer: GroupBuffer, count: int = 1) -> None:
    for _ in range(count):
        await asyncio.wait_for(buffer.lease(lambda: PROMPT), timeout=1)


async def is_granted(buffer: GroupBuffer) -> bool:
    """Whether a group can be leased at once (it is leased then)."""
    try:
        await asyncio.wait_for(buffer.lease(lambda: PROMPT), timeout=0.01)
    except TimeoutError:
        return False
    return True


def finish(buffer: GroupBuffer, group_id: int, *, versions: tuple[int, ...] = (0,)) -> None:
    """From leased to ready."""
    buffer.start_generating(group_id)
    buffer.start_scoring(group_id)
    buffer.put(scored_group(group_id, versions=versions))


async def fill(buffer: GroupBuffer, *, group_ids: range, version: int = 0) -> None:
    await lease(buffer, len(group_ids))
    for group_id in reversed(group_ids):
        finish(buffer, group_id, versions=(version,))


def test_synchronous_run_leases_a_step_only_once_its_version_is_published() -> None:
    async def main() -> None:
        buffer = make_buffer(prompts_per_step=2)
        await fill(buffer, group_ids=range(0, 2))
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
        buffer = make_buffer(prompts_per_step=2, max_staleness=max_staleness)
        num_granted = 0
        while await is_granted(buffer):
            num_granted += 1
        return num_granted

    assert asyncio.run(main()) == 2 * (max_staleness + 1)


def test_batch_takes_the_first_leased_groups_and_is_sorted_by_group_id() -> None:
    async def main() -> None:
        buffer = make_buffer(prompts_per_step=2, max_staleness=2)
        await lease(buffer, 4)
        for group_id in (3, 1, 0, 2):
            finish(buffer, group_id)
        assert [group.group_id for group in await buffer.next_batch()] == [0, 1]
        assert [group.group_id for group in await buffer.next_batch()] == [2, 3]

    asyncio.run(main())


def test_batch_waits_for_a_slow_group_that_the_next_batch_could_not_take() -> None:
    async def main() -> None:
        buffer = make_buffer(prompts_per_step=1, max_staleness=1)
        await lease(buffer, 2)
        finish(buffer, 1)  # group 1 overtakes group 0: batch 1 may still take both
        buffer.mark_trained(await buffer.next_batch())
        buffer.version_published(1)
        await lease(buffer)
        finish(buffer, 2, versions=(1,))
        assert buffer.oldest_lease_version == 0
        waiting = asyncio.create_task(buffer.next_batch())
        await asyncio.sleep(0)
        assert not waiting.done()  # batch 2 could not take group 0 any more
        finish(buffer, 0)
        assert [group.group_id for group in await waiting] == [0]
        assert buffer.totals().dropped == 0

    asyncio.run(main())


def test_batch_goes_on_when_the_slow_group_is_dropped() -> None:
    async def main() -> None:
        buffer = restored_buffer(range(2), prompts_per_step=1)
        finish(buffer, 0)
        waiting = asyncio.create_task(buffer.next_batch())
        await asyncio.sleep(0)
        assert not waiting.done()
        buffer.drop(1, reason="timeout")
        assert [group.group_id for group in await asyncio.wait_for(waiting, timeout=1)] == [0]

    asyncio.run(main())


def test_batch_taken_ahead_is_judged_by_the_version_it_will_train() -> None:
    async def main() -> None:
        buffer = make_buffer(prompts_per_step=1, max_staleness=1)
        await fill(buffer, group_ids=range(0, 2))
        first = await buffer.next_batch()
        await buffer.next_batch()  # trains from version 1: version 0 is one behind and still allowed
        buffer.mark_trained(first)
        buffer.version_published(1)
        await fill(buffer, group_ids=range(2, 3), version=0)
        waiting = asyncio.create_task(buffer.next_batch())  # would train from version 2
        await asyncio.sleep(0)
        assert not waiting.done()
        assert buffer.totals().dropped_by_reason == {"stale": 1}
        buffer.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_dropped_group_frees_its_slot() -> None:
    async def main() -> None:
        buffer = make_buffer(prompts_per_step=1)
        await lease(buffer)
        waiting = asyncio.create_task(buffer.lease(lambda: PROMPT))
        await asyncio.sleep(0)
        assert not waiting.done()
        buffer.drop(0, reason="timeout")
        assert (await asyncio.wait_for(waiting, timeout=1)).group_id == 1
        assert buffer.totals().dropped_by_reason == {"timeout": 1}

    asyncio.run(main())


def test_one_free_slot_goes_to_one_of_two_waiters() -> None:
    async def main() -> None:
        buffer = make_buffer(prompts_per_step=1)
        waiters = [asyncio.create_task(buffer.lease(lambda: PROMPT)) for _ in range(2)]
        await asyncio.sleep(0.01)
        assert sorted(waiter.done() for waiter in waiters) == [False, True]
        buffer.drop(0, reason="timeout")
        await asyncio.wait_for(asyncio.gather(*waiters), timeout=1)

    asyncio.run(main())


def test_no_slot_is_granted_beyond_the_last_update() -> None:
    async def main() -> None:
        buffer = make_buffer(prompts_per_step=2, max_staleness=5, num_updates=1)
        await fill(buffer, group_ids=range(0, 2))
        assert not await is_granted(buffer)
        buffer.drop(0, reason="timeout")
        assert await is_granted(buffer)

    asyncio.run(main())


def test_restored_buffer_counts_groups_in_flight() -> None:
    async def main() -> None:
        buffer = restored_buffer(range(6, 7), prompts_per_step=2, published_version=3)
        assert buffer.outstanding() == {6: PROMPT}
        assert (buffer.totals().regenerated, buffer.totals().is_balanced) == (1, True)
        assert await is_granted(buffer)
        assert not await is_granted(buffer)
        for group_id in (6, 7):
            finish(buffer, group_id, versions=(3,))
        assert [group.group_id for group in await buffer.next_batch()] == [6, 7]

    asyncio.run(main())


def test_restored_groups_that_no_batch_has_room_for_are_dropped_as_stale() -> None:
    async def main() -> None:
        buffer = restored_buffer(range(3), prompts_per_step=1)  # the run before had larger batches
        for group_id in range(3):
            finish(buffer, group_id)
        batch = await asyncio.wait_for(buffer.next_batch(), timeout=1)
        assert [group.group_id for group in batch] == [0]
        buffer.mark_trained(batch)
        buffer.version_published(1)
        waiting = asyncio.create_task(buffer.next_batch())
        await asyncio.sleep(0)
        assert buffer.totals().dropped_by_reason == {"stale": 2}
        await fill(buffer, group_ids=range(3, 4), version=1)
        assert [group.group_id for group in await asyncio.wait_for(waiting, timeout=1)] == [3]

    asyncio.run(main())


def test_a_discarded_batch_gives_its_place_to_the_next_one() -> None:
    async def main() -> None:
        buffer = make_buffer(prompts_per_step=1, num_updates=1)
        await fill(buffer, group_ids=range(1))
        buffer.discard_batch(await buffer.next_batch(), reason="no_loss_tokens")
        await fill(buffer, group_ids=range(1, 2))
        assert [group.group_id for group in await asyncio.wait_for(buffer.next_batch(), timeout=1)] == [1]
        assert buffer.next_batch_version == 1
        assert buffer.totals().dropped_by_reason == {"no_loss_tokens": 1}

    asyncio.run(main())


def test_close_wakes_every_waiter() -> None:
    async def main() -> None:
        buffer = make_buffer(prompts_per_step=1)
        await lease(buffer)
        waits = [asyncio.create_task(wait) for wait in (buffer.lease(lambda: PROMPT), buffer.next_batch())]
        await asyncio.sleep(0)
        buffer.close()
        await asyncio.wait(waits, timeout=1)
        assert all(wait.cancelled() for wait in waits)
        with pytest.raises(BufferClosedError):
            await buffer.lease(lambda: PROMPT)

    asyncio.run(main())


async def buffer_with_one_group_in_each_state() -> GroupBuffer:
    """0 leased, 1 generating, 2 scoring, 3 ready, 4 training, 5 trained, 6 dropped."""
    buffer = make_buffer(prompts_per_step=1, max_staleness=9)
    await lease(buffer, 7)
    for group_id in (5, 4):
        finish(buffer, group_id)
        batch = await buffer.next_batch()
        if group_id == 5:
            buffer.mark_trained(batch)
    buffer.start_generating(1)
    buffer.start_generating(2)
    buffer.start_scoring(2)
    finish(buffer, 3)
    buffer.drop(6, reason="all_invalid")
    return buffer


def test_totals_count_each_transition() -> None:
    buffer = asyncio.run(buffer_with_one_group_in_each_state())
    states: tuple[GroupState, ...] = ("leased", "generating", "scoring", "ready", "training")
    assert [buffer.num_in_state(state) for state in states] == [1] * 5
    buffer.generate_again(1)
    assert buffer.totals().as_json() == {
        "leased": 7,
        "generated": 4,
        "scored": 3,
        "trained": 1,
        "regenerated": 1,
        "dropped": 1,
        "in_flight": 5,
        "undone": 0,
        "dropped_by_reason": {"all_invalid": 1},
    }
    assert buffer.totals().is_balanced
    buffer.drop_all(reason="run_ended")
    assert (buffer.totals().in_flight, buffer.totals().is_balanced) == (0, True)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda buffer: buffer.start_generating(1), "group 1 is generating: generating needs leased"),
        (lambda buffer: buffer.start_scoring(0), "group 0 is leased: scoring needs generating"),
        (lambda buffer: buffer.generate_again(2), "group 2 is scoring: generating needs generating"),
        (lambda buffer: buffer.put(scored_group(1)), "group 1 is generating: ready needs scoring"),
        (lambda buffer: buffer.put(scored_group(3)), "group 3 is ready: ready needs scoring"),
        (lambda buffer: buffer.mark_trained([scored_group(3)]), "group 3 is ready: mark_trained needs training"),
        (
            lambda buffer: buffer.mark_trained([scored_group(5)]),
            "group 5 is not in flight: mark_trained needs training",
        ),
        (lambda buffer: buffer.drop(4, reason="stale"), "group 4 is training: drop .stale. needs leased or"),
        (lambda buffer: buffer.drop(99, reason="stale"), "group 99 is not in flight"),
    ],
)
def test_illegal_transition_raises_and_changes_nothing(attempt: Callable[[GroupBuffer], None], message: str) -> None:
    buffer = asyncio.run(buffer_with_one_group_in_each_state())
    before = buffer.totals()
    with pytest.raises(GroupStateError, match=message):
        attempt(buffer)
    assert buffer.totals() == before


def test_a_group_that_vanished_shows_as_imbalance() -> None:
    buffer = asyncio.run(buffer_with_one_group_in_each_state())
    buffer._groups.pop(0)
    assert not buffer.totals().is_balanced


def test_a_checkpoint_leases_what_was_in_flight_again() -> None:
    buffer = asyncio.run(buffer_with_one_group_in_each_state())
    state = json.loads(json.dumps(buffer.state()))
    restored = GroupBuffer(prompts_per_step=1, max_staleness=9, restored=state, outstanding=buffer.outstanding())
    assert list(restored.outstanding()) == [0, 1, 2, 3, 4]
    assert restored.num_in_state("leased") == 5
    assert (restored.totals().regenerated, restored.totals().is_balanced) == (5, True)
    assert asyncio.run(restored.lease(lambda: PROMPT)).group_id == 7
