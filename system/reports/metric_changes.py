"""How far a noisy metric has moved between two stretches of a run, and whether that is more than noise.

Used by the guards. Plain Python numbers: a few hundred of them for each update.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict


class NoiseState(TypedDict):
    """Of one metric: its last value, and half the sum of the squared differences between successive values."""

    last: float
    half_sum_of_squares: float
    num_differences: int


class RowState(TypedDict):
    update: int
    values: dict[str, float]


class HistoryState(TypedDict):
    """Plain JSON values."""

    num_updates: int
    first: list[RowState]
    recent: list[RowState]
    noise: dict[str, NoiseState]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One update. A metric that the update has no value for is absent."""

    update: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Mean of a metric over a stretch of updates."""

    mean: float
    num_values: int
    last_update: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From one level of a metric to a later one. `z`: the difference in standard errors, from the noise so far."""

    metric: str
    before: float
    after: float
    z: float
    since_update: int  # the last one that counts as before

    @property
    def relative(self) -> float:
        """after / before - 1; infinite where a metric has left zero."""
        if self.before:
            return self.after / self.before - 1.0
        return math.copysign(math.inf, self.after) if self.after else 0.0

    def has_risen(self, *, by: float, z: float) -> bool:
        return self.relative >= by and self.z >= z

    def has_fallen(self, *, by: float, z: float) -> bool:
        return self.relative <= -by and self.z <= -z


class UpdateHistory:
    """The first and the latest updates of a run, and the noise of each metric.

    The noise is the von Neumann estimate from successive differences, which a slow drift hardly touches:

        sigma^2 = sum_t (x_t - x_{t-1})^2 / (2 n),   raised by one standard error of sigma, sqrt(3 / 4n)

    Args:
        num_first: updates kept from the beginning of the run.
        num_recent: latest updates kept.
    """

    def __init__(self, *, num_first: int, num_recent: int) -> None:
        self._num_first = num_first
        self.num_updates = 0
        self.first: list[Row] = []
        self.recent: deque[Row] = deque(maxlen=num_recent)
        self._noise: dict[str, NoiseState] = {}

    def append(self, values: Mapping[str, float], *, update: int) -> None:
        """The values of one more update; those that are not finite count as absent. ValueError unless it is later."""
        if self.recent and update <= self.recent[-1].update:
            raise ValueError(f"update {update} does not follow update {self.recent[-1].update}")
        row = Row(update=update, values={name: value for name, value in values.items() if math.isfinite(value)})
        for name, value in row.values.items():
            noise = self._noise.setdefault(name, NoiseState(last=value, half_sum_of_squares=0.0, num_differences=-1))
            noise["half_sum_of_squares"] += (value - noise["last"]) ** 2 / 2.0
            noise["num_differences"] += 1
            noise["last"] = value
        if len(self.first) < self._num_first:
            self.first.append(row)
        self.recent.append(row)
        self.num_updates += 1

    def change(self, metric: str, *, before: Level | None, after: Level | None) -> Change | None:
        """None where a level or the noise is not known."""
        noise = self._noise.get(metric)
        if before is None or after is None or noise is None or noise["num_differences"] < 1:
            return None
        num_differences = noise["num_differences"]
        sigma = math.sqrt(noise["half_sum_of_squares"] / num_differences) * (1.0 + math.sqrt(0.75 / num_differences))
        standard_error = sigma * math.sqrt(1.0 / before.num_values + 1.0 / after.num_values)
        difference = after.mean - before.mean
        if standard_error:
            z = difference / standard_error
        else:
            z = math.copysign(math.inf, difference) if difference else 0.0
        return Change(metric=metric, before=before.mean, after=after.mean, z=z, since_update=before.last_update)

    def state(self) -> HistoryState:
        return HistoryState(
            num_updates=self.num_updates,
            first=_row_states(self.first),
            recent=_row_states(self.recent),
            noise={name: noise.copy() for name, noise in self._noise.items()},
        )

    def restore(self, state: HistoryState) -> None:
        self.num_updates = state["num_updates"]
        self.first = _rows(state["first"])
        self.recent.clear()
        self.recent.extend(_rows(state["recent"]))
        self._noise = {name: noise.copy() for name, noise in state["noise"].items()}


def level(metric: str, *, rows: Sequence[Row]) -> Level | None:
    """None where fewer than half of the updates, or none, have a value."""
    values = [row.values[metric] for row in rows if metric in row.values]
    if not values or 2 * len(values) < len(rows):
        return None
    return Level(mean=math.fsum(values) / len(values), num_values=len(values), last_update=rows[-1].update)


def _row_states(rows: Iterable[Row]) -> list[RowState]:
    return [RowState(update=row.update, values=dict(row.values)) for row in rows]


def _rows(states: Sequence[RowState]) -> list[Row]:
    return [Row(update=state["update"], values=dict(state["values"])) for state in states]
