"""The buffer between the rollout loops and the batch loop; it alone decides how far rollouts may run ahead.

    prompt_loop   wait_for_slot ─> lease ─┐
    rollout_loop                          └> generate, score ─> put ─┐        (or drop: frees the slot)
    batch_loop                                    next_batch  <──────┘ ─> train ─> mark_trained ─> version_published

| loop        | waits for                                   | who wakes it                                     |
|-------------|---------------------------------------------|--------------------------------------------------|
| prompt_loop | `wait_for_slot`: the next step is in reach  | `version_published`, `drop`, a stale group's drop |
| batch_loop  | `next_batch`: prompts_per_step fresh groups | `put`, `drop`                                    |
| both        |                                             | `close`, with BufferClosedError                  |

A slot belongs to step `first + (trained + outstanding) // prompts_per_step`, where outstanding groups are leased,
buffered or in a batch that is not trained yet. It is granted when that step is at most `max_staleness` versions
ahead of the published one. With `max_staleness=0` the groups of step s are leased only once version s is
published, which makes the same code synchronous. Nobody can wait for ever on a healthy run: the current step
always has prompts_per_step slots, and a group that ends without training gives its slot back.

A batch takes the groups that were leased first, and does not leave so many behind that a later batch would find one
of them stale: it waits for slow ones. Otherwise quick groups would overtake them, and long completions would be
trained less often than short ones. Once all groups in flight are ready, there is room for each: before version v + 1
is published, at most prompts_per_step slots for each step up to v + max_staleness are granted.
"""

import asyncio
from collections.abc import Callable, Sequence

from system.records import ScoredGroup
from system.runtime.ledger import Ledger


class BufferClosedError(asyncio.CancelledError):
    """The buffer was closed while waiting. A cancellation, so that a loop may simply end by it."""


def min_policy_version(group: ScoredGroup) -> int:
    """The oldest policy version that wrote a token of the group."""
    return min(trajectory.min_policy_version for trajectory in group.group.trajectories)


class GroupBuffer:
    """Hands out slots and batches; runs in one event loop and needs no lock. Every change goes to the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        prompts_per_step: int,
        max_staleness: int,
        published_version: int = 0,
        num_updates: int | None = None,
    ) -> None:
        """Groups in flight in a restored ledger already hold slots: generate them without leasing.

        `num_updates` ends the run: no slot is granted for a step that would not be trained (None: no end).
        """
        self._ledger = ledger
        self._prompts_per_step = prompts_per_step
        self._max_staleness = max_staleness
        self._num_updates = num_updates
        self._first_version = published_version
        self._published_version = published_version
        self._next_batch_version = published_version
        self._num_trained = 0  # since this object was made: a resumed run may use another prompts_per_step
        self._num_reserved = 0  # granted slots that are not leased yet
        self._ready: dict[int, ScoredGroup] = {}
        # group_id of an outstanding group -> published version when it was leased: none of its tokens is older.
        # By ascending group_id and version, because both only grow.
        self._leased_at = dict.fromkeys(sorted(ledger.in_flight_group_ids()), published_version)
        self._is_closed = False
        self._changed = asyncio.Event()

    @property
    def published_version(self) -> int:
        return self._published_version

    @property
    def num_ready(self) -> int:
        """Scored groups that wait for a batch."""
        return len(self._ready)

    @property
    def num_outstanding(self) -> int:
        """Slots in use: reserved, leased, buffered, or in a batch that is not trained yet."""
        return self._ledger.num_in_flight + self._num_reserved

    async def wait_for_slot(self) -> None:
        """Waits until one more group may be generated and reserves its slot; `lease` or `release_slot` follows.

        Raises BufferClosedError after `close`.
        """
        await self._wait_until(lambda: self._num_free_slots() > 0)
        self._num_reserved += 1

    def lease(self, group_id: int) -> None:
        """Turns a reserved slot into a leased group."""
        assert self._num_reserved > 0, "lease without wait_for_slot"
        self._ledger.lease(group_id)
        self._leased_at[group_id] = self._published_version
        self._num_reserved -= 1

    def release_slot(self) -> None:
        """Gives a reserved slot back unused."""
        assert self._num_reserved > 0, "release_slot without wait_for_slot"
        self._num_reserved -= 1
        self._wake_waiters()

    def put(self, group: ScoredGroup) -> None:
        """Takes in a group that the ledger knows as generated, and marks it scored."""
        self._ledger.mark_scored(group.group_id)
        self._ready[group.group_id] = group
        self._wake_waiters()

    def drop(self, group_id: int, *, reason: str) -> None:
        """Ends a group that is in flight; its slot is free again."""
        self._ledger.drop(group_id, reason=reason)
        self._ready.pop(group_id, None)
        self._leased_at.pop(group_id, None)
        self._wake_waiters()

    async def next_batch(self) -> list[ScoredGroup]:
        """Waits for prompts_per_step groups and returns them by ascending group_id.

        Groups that were leased first go first, and slow ones are waited for in time. Groups that are more than
        `max_staleness` versions behind the policy that this batch will train are nevertheless dropped as "stale":
        a run that was resumed with other batch sizes may hold some. Raises BufferClosedError after `close`.
        """
        await self._wait_until(self._is_batch_ready)
        batch = [self._ready.pop(group_id) for group_id in sorted(self._ready)[: self._prompts_per_step]]
        for group in batch:
            del self._leased_at[group.group_id]
        self._next_batch_version += 1
        return batch

    def mark_trained(self, groups: Sequence[ScoredGroup]) -> None:
        """The optimizer step on these groups is done; the next version is not published yet."""
        for group in groups:
            self._ledger.mark_trained(group.group_id)
        self._num_trained += len(groups)
        self._wake_waiters()

    def version_published(self, version: int) -> None:
        """All rollout workers hold `version` now."""
        assert version >= self._published_version, f"version {version} after {self._published_version}"
        self._published_version = version
        self._wake_waiters()

    def close(self) -> None:
        """Wakes all waiters with BufferClosedError; later waits raise it at once. Groups stay in the ledger."""
        self._is_closed = True
        self._wake_waiters()

    def _num_free_slots(self) -> int:
        num_steps = self._published_version + self._max_staleness + 1
        if self._num_updates is not None:
            num_steps = min(num_steps, self._num_updates)
        num_slots = (num_steps - self._first_version) * self._prompts_per_step
        return max(0, num_slots - self._num_trained - self.num_outstanding)

    def _is_batch_ready(self) -> bool:
        self._drop_stale()
        if len(self._ready) < self._prompts_per_step:
            return False
        num_to_lease = self._num_reserved + self._num_free_slots()
        if len(self._ready) == len(self._leased_at) and num_to_lease == 0:
            return True  # nothing that it would help to wait for
        batch = set(sorted(self._ready)[: self._prompts_per_step])
        left_behind = [version for group_id, version in self._leased_at.items() if group_id not in batch]
        left_behind += [self._published_version] * num_to_lease
        return all(
            self._next_batch_version + 1 + index // self._prompts_per_step <= version + self._max_staleness
            for index, version in enumerate(left_behind)
        )

    def _drop_stale(self) -> None:
        # Measured against the version that the batch will train, not the published one: while a step is being
        # trained or published, the next batch may already be taken.
        oldest_allowed = self._next_batch_version - self._max_staleness
        stale = [group.group_id for group in self._ready.values() if min_policy_version(group) < oldest_allowed]
        for group_id in stale:
            self.drop(group_id, reason="stale")

    async def _wait_until(self, is_fulfilled: Callable[[], bool]) -> None:
        while not self._is_closed:
            changed = self._changed
            if is_fulfilled():
                return
            if changed is self._changed:  # is_fulfilled may itself have woken the waiters, us included
                await changed.wait()
        raise BufferClosedError("the group buffer is closed")

    def _wake_waiters(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
