"""The history of all groups in numbers: every transition that the group buffer makes is counted here, once.

Each transition is counted on its own, so `leased == trained + dropped + in flight` is a check and no tautology.
A group that is generated again keeps its lease: it adds to `regenerated`, never to `leased`. When the run goes back to
a checkpoint in mid-run, the counts go back with it; how many trained groups were thereby undone is kept in `undone`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

Transition = Literal["leased", "generated", "scored", "trained", "regenerated"]


class LedgerState(TypedDict):
    """What a checkpoint keeps of the groups; plain JSON."""

    leased: int
    generated: int
    scored: int
    trained: int
    regenerated: int
    undone: NotRequired[int]  # absent in the checkpoints of early versions
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
    undone: int = 0  # trained, then lost with the learner's weights and generated again; in none of the others

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
            "undone": self.undone,
            "dropped_by_reason": dict(sorted(self.dropped_by_reason.items())),
        }


class Ledger:
    """Counts; it knows no group."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()

    @classmethod
    def restore(cls, state: LedgerState) -> "Ledger":
        """The ledger of a checkpoint. What was in flight lost its work and is counted as regenerated."""
        ledger = cls()
        for name in ("leased", "generated", "scored", "trained", "regenerated"):
            ledger._counts[name] = state[name]
        ledger._counts["regenerated"] += len(state["in_flight"])
        ledger._counts["undone"] = state.get("undone", 0)
        ledger._dropped.update(state["dropped"])
        return ledger

    def count(self, transition: Transition) -> None:
        self._counts[transition] += 1

    def count_dropped(self, reason: str) -> None:
        """`reason` is a short fixed code such as "stale"."""
        self._dropped[reason] += 1

    def totals(self, *, in_flight: int) -> LedgerTotals:
        """`in_flight` is counted by whoever holds the groups."""
        return LedgerTotals(
            leased=self._counts["leased"],
            generated=self._counts["generated"],
            scored=self._counts["scored"],
            trained=self._counts["trained"],
            regenerated=self._counts["regenerated"],
            dropped=self._dropped.total(),
            in_flight=in_flight,
            dropped_by_reason=dict(self._dropped),
            undone=self._counts["undone"],
        )

    def state(self, *, in_flight: Sequence[int], last_group_id: int) -> LedgerState:
        """JSON for a checkpoint; `restore` reads it."""
        return LedgerState(
            leased=self._counts["leased"],
            generated=self._counts["generated"],
            scored=self._counts["scored"],
            trained=self._counts["trained"],
            regenerated=self._counts["regenerated"],
            undone=self._counts["undone"],
            dropped=dict(sorted(self._dropped.items())),
            in_flight=list(in_flight),
            last_group_id=last_group_id,
        )
