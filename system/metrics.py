"""Metric names, how their values within one update are reduced, and what they are plotted against.

A name is `area/name_unit`. A module declares the metrics it produces as a tuple of `MetricDefinition`s beside the
code that produces them; an entry point joins those tuples into one `MetricTable`, and a name that is in no tuple is
an error. `<...>` in a name stands for one word that is not known beforehand, such as a verifier's reason.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from system.records import Metric

Reduction = Literal["mean", "sum", "max", "last"]
XAxis = Literal["policy_version", "tokens", "seconds"]

X_AXIS_METRICS: Mapping[XAxis, str] = {
    "policy_version": "progress/policy_version",
    "tokens": "progress/tokens",
    "seconds": "progress/seconds",
}

_NAME_PATTERN = re.compile(r"[a-z0-9_]+(/[a-z0-9_<>]+)+")
_PLACEHOLDER = re.compile(r"<[a-z_]+>")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDefinition:
    """One metric, or a family of them when the name holds a `<word>`."""

    name: str  # area/name_unit
    description: str
    reduction: Reduction = "mean"  # of several values within one update; the mean is over the values' weights
    x_axis: XAxis = "policy_version"
    depends_on_timing: bool = False  # differs between two runs with the same seed for other reasons than its unit

    def __post_init__(self) -> None:
        if not _NAME_PATTERN.fullmatch(self.name):
            raise ValueError(f"metric {self.name!r} is not of the form area/name_unit")

    @property
    def is_reproducible(self) -> bool:
        """Whether two synchronous runs with the same seed give the same values."""
        return not (self.depends_on_timing or self.name.endswith(("seconds", "per_second")))

    def matches(self, name: str) -> bool:
        literal_parts = [re.escape(part) for part in _PLACEHOLDER.split(self.name)]
        return re.fullmatch("[a-z0-9_]+".join(literal_parts), name) is not None


class MetricTable:
    """All metrics of a run; ValueError for a name that is declared twice, KeyError for one that is not declared."""

    def __init__(self, *definitions: Sequence[MetricDefinition]) -> None:
        self._by_name: dict[str, MetricDefinition] = {}
        self._families: list[MetricDefinition] = []
        for definition in (definition for group in definitions for definition in group):
            if definition.name in self._by_name:
                raise ValueError(f"metric {definition.name!r} is declared twice")
            self._by_name[definition.name] = definition
            if "<" in definition.name:
                self._families.append(definition)

    def find(self, name: str) -> MetricDefinition:
        """The definition of `name`: its own, or that of the family it belongs to."""
        if "<" not in name:
            if name in self._by_name:
                return self._by_name[name]
            for family in self._families:
                if family.matches(name):
                    return family
        raise KeyError(f"metric {name!r} is not declared; add a MetricDefinition where it is produced")

    def definitions(self) -> tuple[MetricDefinition, ...]:
        return tuple(self._by_name.values())


class MetricSet:
    """Collects the metrics of one update and reduces each as its definition says."""

    def __init__(self, table: MetricTable) -> None:
        self._table = table
        self._reduced: dict[str, _Running] = {}

    def add(self, name: str, value: float, *, weight: float = 1.0) -> None:
        """Adds one value; `weight` counts in means only. KeyError for an undeclared name."""
        reduction = self._table.find(name).reduction
        self._reduced.setdefault(name, _Running(reduction=reduction)).add(float(value), weight=weight)

    def extend(self, metrics: Iterable[Metric]) -> None:
        for metric in metrics:
            self.add(metric.name, metric.value)

    def reduce(self) -> dict[str, float]:
        """The reduced values, by ascending name. A mean of weights that sum to 0 is NaN."""
        return {name: running.value() for name, running in sorted(self._reduced.items())}

    def value(self, name: str) -> float | None:
        """The reduced value so far; None when nothing was added."""
        return self._reduced[name].value() if name in self._reduced else None

    def clear(self) -> None:
        self._reduced.clear()


@dataclass(slots=True, kw_only=True)
class _Running:
    reduction: Reduction
    total: float = field(default=0.0)
    total_weight: float = field(default=0.0)
    largest: float = field(default=-math.inf)
    last: float = field(default=math.nan)

    def add(self, value: float, *, weight: float) -> None:
        self.total += value * weight if self.reduction == "mean" else value
        self.total_weight += weight
        # max() keeps whichever argument comes first when one is NaN: a NaN has to win, or it goes unnoticed.
        self.largest = value if math.isnan(value) or value > self.largest else self.largest
        self.last = value

    def value(self) -> float:
        if self.reduction == "mean":
            return self.total / self.total_weight if self.total_weight else math.nan
        return {"sum": self.total, "max": self.largest, "last": self.last}[self.reduction]
