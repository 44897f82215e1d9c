"""The account of every prompt group: where it is, or how it ended. Used by the group buffer and the controller.

    lease ──> leased ──mark_generated──> generated ──mark_scored──> scored ──mark_trained──> trained
                ^                            │                         │
                └──────── regenerate ────────┘ (its worker died)       │
    any of leased, generated, scored ──drop(reason)──> dropped  <──────┘

Each transition is counted on its own, so `leased == trained + dropped + in flight` is a check and no tautology.
A group that is generated again keeps its lease: it adds to `regenerated`, never to `leased`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

GroupState = Literal["leased", "generated", "scored"]


class LedgerError(RuntimeError):
    """A transition that no correct controller makes; names the group, its state and what was attempted."""


class LedgerState(TypedDict):
    """What a checkpoint keeps of a ledger; plain JSON."""

    leased: int
    generated: int
    scored: int
    trained: int
    regenerated: int
    dropped: dict[str, int]
    in_flight: list[int]
    last_group_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerTotals:
    """Groups since the start of the run. `generated` and `scored` count a regenerated group each time."""

    leased: int
    generated: int
    scored: int
    trained: int
    regenerated: int
    dropped: int
    in_flight: int
    dropped_by_reason: Mapping[str, int]

    @property
    def is_balanced(self) -> bool:
        """Every leased group was trained on, was dropped with a reason, or is still in flight."""
        return self.leased == self.trained + self.dropped + self.in_flight

    def as_json(self) -> dict[str, int | dict[str, int]]:
        return {
            "leased": self.leased,
            "generated": self.generated,
            "scored": self.scored,
            "trained": self.trained,
            "regenerated": self.regenerated,
            "dropped": self.dropped,
            "in_flight": self.in_flight,
            "dropped_by_reason": dict(sorted(self.dropped_by_reason.items())),
        }


class Ledger:
    """Counts groups through their life and refuses illegal transitions with LedgerError."""

    def __init__(self) -> None:
        self._states: dict[int, GroupState] = {}
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._last_group_id = -1

    @classmethod
    def restore(cls, state: LedgerState) -> "Ledger":
        """The ledger of a checkpoint. What was in flight lost its work: it is leased and counted as regenerated."""
        ledger = cls()
        for name in ("leased", "generated", "scored", "trained", "regenerated"):
            ledger._counts[name] = state[name]
        ledger._dropped.update(state["dropped"])
        ledger._last_group_id = state["last_group_id"]
        for group_id in state["in_flight"]:
            ledger._states[group_id] = "leased"
            ledger._counts["regenerated"] += 1
        return ledger

    def state(self) -> LedgerState:
        """JSON for a checkpoint; `restore` reads it."""
        return LedgerState(
            leased=self._counts["leased"],
            generated=self._counts["generated"],
            scored=self._counts["scored"],
            trained=self._counts["trained"],
            regenerated=self._counts["regenerated"],
            dropped=dict(sorted(self._dropped.items())),
            in_flight=sorted(self._states),
            last_group_id=self._last_group_id,
        )

    def lease(self, group_id: int) -> None:
        """A prompt was handed out. Group ids ascend over the run, so that a second lease is noticed."""
        if group_id <= self._last_group_id:
            raise LedgerError(f"group {group_id} cannot be leased: group {self._last_group_id} was leased before it")
        self._last_group_id = group_id
        self._states[group_id] = "leased"
        self._counts["leased"] += 1

    def mark_generated(self, group_id: int) -> None:
        self._require(group_id, allowed=("leased",), attempted="mark_generated")
        self._states[group_id] = "generated"
        self._counts["generated"] += 1

    def mark_scored(self, group_id: int) -> None:
        self._require(group_id, allowed=("generated",), attempted="mark_scored")
        self._states[group_id] = "scored"
        self._counts["scored"] += 1

    def mark_trained(self, group_id: int) -> None:
        self._require(group_id, allowed=("scored",), attempted="mark_trained")
        del self._states[group_id]
        self._counts["trained"] += 1

    def regenerate(self, group_id: int) -> None:
        """The worker that held the group died before it was scored; it starts over under the same lease."""
        self._require(group_id, allowed=("leased", "generated"), attempted="regenerate")
        self._states[group_id] = "leased"
        self._counts["regenerated"] += 1

    def drop(self, group_id: int, *, reason: str) -> None:
        """The group ends without training. `reason` is a short fixed code such as "stale"."""
        self._require(group_id, allowed=("leased", "generated", "scored"), attempted=f"drop ({reason})")
        del self._states[group_id]
        self._dropped[reason] += 1

    def drop_in_flight(self, *, reason: str) -> int:
        """Drops all that is in flight (at the end of a run: "run_ended") and returns how many that were."""
        group_ids = self.in_flight_group_ids()
        for group_id in group_ids:
            self.drop(group_id, reason=reason)
        return len(group_ids)

    @property
    def num_in_flight(self) -> int:
        return len(self._states)

    @property
    def num_trained(self) -> int:
        return self._counts["trained"]

    @property
    def last_group_id(self) -> int:
        """The highest id leased so far, -1 before the first."""
        return self._last_group_id

    @property
    def is_balanced(self) -> bool:
        return self.totals().is_balanced

    def in_flight_group_ids(self) -> tuple[int, ...]:
        """Ascending; after `restore`, the groups that have to be generated again."""
        return tuple(sorted(self._states))

    def num_in_state(self, state: GroupState) -> int:
        return sum(1 for current in self._states.values() if current == state)

    def totals(self) -> LedgerTotals:
        return LedgerTotals(
            leased=self._counts["leased"],
            generated=self._counts["generated"],
            scored=self._counts["scored"],
            trained=self._counts["trained"],
            regenerated=self._counts["regenerated"],
            dropped=self._dropped.total(),
            in_flight=len(self._states),
            dropped_by_reason=dict(self._dropped),
        )

    def _require(self, group_id: int, *, allowed: tuple[GroupState, ...], attempted: str) -> None:
        state = self._states.get(group_id)
        if state not in allowed:
            held = state if state is not None else "not in flight"
            raise LedgerError(f"group {group_id} is {held}: {attempted} needs {' or '.join(allowed)}")
