"""The one owner of every group, from its lease to its end; it alone decides how far rollouts may run ahead.

    lease ──> leased ──start_generating──> generating ──start_scoring──> scoring ──put──> ready ──next_batch──> training
                                            └─ generate_again ─┘                                                   │
    any of them ──drop(reason)──> dropped                                        trained <──────mark_trained───────┘

| loop         | waits for                                     | who wakes it                                       |
|--------------|-----------------------------------------------|----------------------------------------------------|
| prompt_loop  | `lease`: the next step is in reach            | `version_published`, `drop`, a stale group's drop  |
| prepare_loop | `next_batch`: prompts_per_step fresh groups   | `put`, `drop`                                      |
| both         |                                               | `close`, with BufferClosedError                    |

A slot belongs to step `first + (trained + outstanding) // prompts_per_step`, where outstanding groups are those in any
of the five states. It is granted when that step is at most `max_staleness` versions ahead of the published one. With
`max_staleness=0` the groups of step s are leased only once version s is published, which makes the same code
synchronous. Nobody can wait for ever on a healthy run: the current step always has prompts_per_step slots, and a group
that ends without training gives its slot back.

A batch takes the groups that were leased first, and does not leave so many behind that a later batch would find one
of them stale: it waits for slow ones. Otherwise quick groups would overtake them, and long completions would be
trained less often than short ones. Once all groups in flight are ready, there is room for each: before version v + 1
is published, at most prompts_per_step slots for each step up to v + max_staleness are granted.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from system.records import Prompt, ScoredGroup
from system.runtime.ledger import Ledger, LedgerState, LedgerTotals

GroupState = Literal["leased", "generating", "scoring", "ready", "training"]


class BufferClosedError(asyncio.CancelledError):
    """The buffer was closed while waiting. A cancellation, so that a loop may simply end by it."""


class GroupStateError(RuntimeError):
    """A transition that no correct controller makes; names the group, its state and what was attempted."""


@dataclass(slots=True, kw_only=True, eq=False)
class GroupRecord:
    """Where one group is. `scored` is there from ready on."""

    group_id: int
    prompt: Prompt
    leased_at: int  # published policy version at the lease: none of its tokens is older
    state: GroupState = "leased"
    scored: ScoredGroup | None = None


class GroupBuffer:
    """Holds the record of every group in flight; runs in one event loop and needs no lock."""

    def __init__(
        self,
        *,
        prompts_per_step: int,
        max_staleness: int,
        published_version: int = 0,
        num_updates: int | None = None,
        restored: LedgerState | None = None,
        outstanding: Mapping[int, Prompt] | None = None,
    ) -> None:
        """`outstanding` groups of a checkpoint hold slots already: generate them without leasing.

        `num_updates` ends the run: no slot is granted for a step that would not be trained (None: no end).
        """
        self._ledger = Ledger.restore(restored) if restored else Ledger()
        self._last_group_id = restored["last_group_id"] if restored else -1
        # by ascending group_id and leased_at, because both only grow
        self._groups = {
            group_id: GroupRecord(group_id=group_id, prompt=prompt, leased_at=published_version)
            for group_id, prompt in sorted((outstanding or {}).items())
        }
        self._prompts_per_step = prompts_per_step
        self._max_staleness = max_staleness
        self._num_updates = num_updates
        self._first_version = published_version
        self._published_version = published_version
        self._next_batch_version = published_version
        self._num_trained = 0  # since this object was made: a resumed run may use another prompts_per_step
        self._is_closed = False
        self._changed = asyncio.Event()

    @property
    def published_version(self) -> int:
        return self._published_version

    @property
    def next_batch_version(self) -> int:
        """The policy version that the next batch will train."""
        return self._next_batch_version

    @property
    def num_outstanding(self) -> int:
        """Slots in use."""
        return len(self._groups)

    @property
    def has_free_slot(self) -> bool:
        """Whether `lease` would return at once."""
        return self._num_free_slots() > 0

    def num_in_state(self, state: GroupState) -> int:
        return sum(1 for record in self._groups.values() if record.state == state)

    def totals(self) -> LedgerTotals:
        """Groups since the start of the run; what it counts must balance with the records that are held."""
        return self._ledger.totals(in_flight=len(self._groups))

    def outstanding(self) -> dict[int, Prompt]:
        """Groups that were leased and are neither trained nor dropped, for a checkpoint or to be generated again."""
        return {group_id: record.prompt for group_id, record in self._groups.items()}

    def state(self) -> LedgerState:
        """JSON for a checkpoint."""
        return self._ledger.state(in_flight=list(self._groups), last_group_id=self._last_group_id)

    async def lease(self, next_prompt: Callable[[], Prompt]) -> GroupRecord:
        """Waits until one more group may be generated; the record of that group. Raises BufferClosedError."""
        await self._wait_until(lambda: self._num_free_slots() > 0)
        self._last_group_id += 1
        record = GroupRecord(group_id=self._last_group_id, prompt=next_prompt(), leased_at=self._published_version)
        self._groups[record.group_id] = record
        self._ledger.count("leased")
        return record

    def start_generating(self, group_id: int) -> GroupRecord:
        return self._move(group_id, "generating", allowed=("leased",))

    def generate_again(self, group_id: int) -> None:
        """The worker that held the group died; it starts over under the same lease."""
        self._move(group_id, "generating", allowed=("generating",))
        self._ledger.count("regenerated")

    def start_scoring(self, group_id: int) -> None:
        """The completions are there."""
        self._move(group_id, "scoring", allowed=("generating",))
        self._ledger.count("generated")

    def put(self, group: ScoredGroup) -> None:
        """The group can be trained on."""
        self._move(group.group_id, "ready", allowed=("scoring",)).scored = group
        self._ledger.count("scored")
        self._wake_waiters()

    def drop(self, group_id: int, *, reason: str) -> None:
        """The group ends without training; its slot is free again. `reason` is a short fixed code such as "stale"."""
        self._require(group_id, allowed=("leased", "generating", "scoring", "ready"), attempted=f"drop ({reason})")
        self._end(group_id, reason=reason)

    def drop_all(self, *, reason: str) -> None:
        """At the end of a run: what is still in flight."""
        for group_id in list(self._groups):
            self._end(group_id, reason=reason)

    async def next_batch(self) -> list[ScoredGroup]:
        """Waits for prompts_per_step groups and returns them by ascending group_id.

        Groups that were leased first go first, and slow ones are waited for in time. Groups that are more than
        `max_staleness` versions behind the policy that this batch will train are nevertheless dropped as "stale":
        a run that was resumed with other batch sizes may hold some. Raises BufferClosedError after `close`.
        """
        await self._wait_until(self._is_batch_ready)
        batch = [group for _, group in self._ready()[: self._prompts_per_step]]
        for group in batch:
            self._move(group.group_id, "training", allowed=("ready",))
        self._next_batch_version += 1
        return batch

    async def next_portion(self, *, num_groups: int, num_taken: int) -> list[ScoredGroup]:
        """The next part of a batch of which `num_taken` groups were taken already, by ascending group_id.

        Waits for `num_groups`, or for all that the batch still lacks. A batch in portions consists of the groups that
        were leased first, so that it leaves none behind that would become stale. Raises BufferClosedError.
        """
        is_first = num_taken == 0
        version = self._next_batch_version - (0 if is_first else 1)
        await self._wait_until(lambda: self._is_portion_ready(num_groups, num_taken=num_taken, version=version))
        portion = [group for _, group in self._ready_of_batch(num_taken)]
        for group in portion:
            self._move(group.group_id, "training", allowed=("ready",))
        self._next_batch_version += is_first
        return portion

    def mark_trained(self, groups: Sequence[ScoredGroup]) -> None:
        """The optimizer step on these groups is done; the next version is not published yet."""
        for group in groups:
            self._require(group.group_id, allowed=("training",), attempted="mark_trained")
            del self._groups[group.group_id]
            self._ledger.count("trained")
        self._num_trained += len(groups)
        self._wake_waiters()

    def discard_batch(self, groups: Sequence[ScoredGroup], *, reason: str) -> None:
        """No update comes of a batch: its groups are dropped, and a later batch trains the version that it was for."""
        for group in groups:
            self._require(group.group_id, allowed=("training",), attempted=f"discard ({reason})")
            self._end(group.group_id, reason=reason)
        self._next_batch_version -= 1
        self._wake_waiters()

    def version_published(self, version: int) -> None:
        """All rollout workers hold `version` now."""
        assert version >= self._published_version, f"version {version} after {self._published_version}"
        self._published_version = version
        self._wake_waiters()

    async def wait_until_next(self) -> int:
        """Waits until the batch that was taken last trains the published version, and returns that.

        Raises BufferClosedError after `close`.
        """
        await self._wait_until(lambda: self._published_version >= self._next_batch_version - 1)
        return self._published_version

    def close(self) -> None:
        """Wakes all waiters with BufferClosedError; later waits raise it at once. Groups stay where they are."""
        self._is_closed = True
        self._wake_waiters()

    def _ready(self) -> list[tuple[GroupRecord, ScoredGroup]]:
        return [
            (record, record.scored) for record in self._groups.values() if record.state == "ready" and record.scored
        ]

    def _require(self, group_id: int, *, allowed: tuple[GroupState, ...], attempted: str) -> GroupRecord:
        record = self._groups.get(group_id)
        if record is None or record.state not in allowed:
            held = record.state if record is not None else "not in flight"
            raise GroupStateError(f"group {group_id} is {held}: {attempted} needs {' or '.join(allowed)}")
        return record

    def _move(self, group_id: int, state: GroupState, *, allowed: tuple[GroupState, ...]) -> GroupRecord:
        record = self._require(group_id, allowed=allowed, attempted=state)
        record.state = state
        return record

    def _end(self, group_id: int, *, reason: str) -> None:
        del self._groups[group_id]
        self._ledger.count_dropped(reason)
        self._wake_waiters()

    def _num_free_slots(self) -> int:
        num_steps = self._published_version + self._max_staleness + 1
        if self._num_updates is not None:
            num_steps = min(num_steps, self._num_updates)
        num_slots = (num_steps - self._first_version) * self._prompts_per_step
        return max(0, num_slots - self._num_trained - self.num_outstanding)

    def _is_batch_ready(self) -> bool:
        self._drop_stale(self._next_batch_version)
        ready = self._ready()
        if len(ready) < self._prompts_per_step:
            return False
        num_to_lease = self._num_free_slots()
        waiting = [record for record in self._groups.values() if record.state != "training"]
        if len(ready) == len(waiting) and num_to_lease == 0:
            return True  # nothing that it would help to wait for
        batch = {record.group_id for record, _ in ready[: self._prompts_per_step]}
        left_behind = [record.leased_at for record in waiting if record.group_id not in batch]
        left_behind += [self._published_version] * num_to_lease
        return all(
            self._next_batch_version + 1 + index // self._prompts_per_step <= version + self._max_staleness
            for index, version in enumerate(left_behind)
        )

    def _ready_of_batch(self, num_taken: int) -> list[tuple[GroupRecord, ScoredGroup]]:
        """Of the groups that a batch in portions still lacks, those that are ready."""
        waiting = [record for record in self._groups.values() if record.state != "training"]
        lacking = waiting[: self._prompts_per_step - num_taken]
        return [(record, record.scored) for record in lacking if record.state == "ready" and record.scored]

    def _is_portion_ready(self, num_groups: int, *, num_taken: int, version: int) -> bool:
        self._drop_stale(version)
        return len(self._ready_of_batch(num_taken)) >= min(num_groups, self._prompts_per_step - num_taken)

    def _drop_stale(self, version: int) -> None:
        # Measured against the version that the batch will train, not the published one: while a step is being
        # trained or published, the next batch may already be taken.
        oldest_allowed = version - self._max_staleness
        for record, group in self._ready():
            if group.group.min_policy_version < oldest_allowed:
                self.drop(record.group_id, reason="stale")

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
