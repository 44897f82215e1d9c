"""What was recorded against what was computed again: the largest difference, where it is, whether it is too large."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# fields of a record that are of the machine or of the moment
_NOT_COMPARED = ("seconds", "policy_version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """|recorded - again| <= absolute + relative * |recorded|."""

    absolute: float = 0.0
    relative: float = 0.0

    def __str__(self) -> str:
        if math.isinf(self.absolute):
            return "not bounded"
        return (
            " + ".join(
                text
                for text, value in ((f"{self.absolute:g}", self.absolute), (f"{self.relative:g} of it", self.relative))
                if value
            )
            or "equal"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One value, or an array of them, or a text, and where it stands."""

    place: str
    recorded: Any
    again: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the table; `recorded` and `again` are the values where the difference is largest."""

    what: str
    num_compared: int
    num_different: int  # beyond the tolerance
    recorded: str
    again: str
    largest_difference: float  # infinite between texts, or where one of the two is no number
    tolerance: str
    where: str

    @property
    def is_reproduced(self) -> bool:
        return self.num_different == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NotComputed:
    """A part that could not be computed again, and what it would take."""

    what: str
    reason: str


def compare(what: str, pairs: Iterable[Pair], *, tolerance: Tolerance) -> Finding:
    """One line of all pairs. Arrays of unequal shape differ as a whole."""
    num_compared = num_different = 0
    worst: tuple[float, str, str, str] | None = None
    for pair in pairs:
        recorded, again, difference = _differences(pair)
        bound = tolerance.absolute + tolerance.relative * (0.0 if isinstance(recorded, str) else np.abs(recorded))
        is_different = ~(difference <= bound)
        num_compared += difference.size
        num_different += int(is_different.sum())
        if not difference.size:
            continue
        at = np.unravel_index(int(difference.argmax()), difference.shape)
        largest = float(difference[at])
        if worst is None or largest > worst[0]:
            numbers = [str(int(number)) for number in at]
            place = f"{pair.place} {', '.join(numbers)}" if numbers else pair.place
            worst = (largest, place, _shown(recorded, at), _shown(again, at))
    difference_, where, recorded_text, again_text = worst or (0.0, "", "", "")
    return Finding(
        what=what,
        num_compared=num_compared,
        num_different=num_different,
        recorded=recorded_text,
        again=again_text,
        largest_difference=difference_,
        tolerance=str(tolerance),
        where=where if difference_ > 0.0 else "",
    )


def unrecorded(what: str, *, again: float) -> Finding:
    """A line for what can be computed, but was not recorded."""
    return Finding(
        what=what,
        num_compared=0,
        num_different=0,
        recorded="-",
        again=f"{again:.9g}",
        largest_difference=0.0,
        tolerance="-",
        where="",
    )


def pairs_of_records(recorded: object, again: object, *, place: str) -> Iterator[Pair]:
    """The values of two records of one type, field by field; times and versions of weights are left out."""
    if is_dataclass(recorded) and type(recorded) is type(again):
        for entry in fields(recorded):
            if not entry.name.endswith(_NOT_COMPARED):
                one, other = getattr(recorded, entry.name), getattr(again, entry.name)
                yield from pairs_of_records(one, other, place=f"{place}, {entry.name}")
    elif isinstance(recorded, tuple) and isinstance(again, tuple) and len(recorded) == len(again):
        for number, (one, other) in enumerate(zip(recorded, again, strict=True)):
            yield from pairs_of_records(one, other, place=f"{place} {number}")
    elif all(isinstance(value, int | float | np.ndarray | np.generic) for value in (recorded, again)):
        yield Pair(place=place, recorded=recorded, again=again)
    else:
        yield Pair(place=place, recorded=str(recorded), again=str(again))


def _differences(pair: Pair) -> tuple[Any, Any, NDArray[np.float64]]:
    """Both as float64 arrays, or as texts, and |recorded - again|: 0 where both are the same, NaN and texts too."""
    if isinstance(pair.recorded, str) or isinstance(pair.again, str):
        recorded, again = str(pair.recorded), str(pair.again)
        return recorded, again, np.array(0.0 if recorded == again else math.inf)
    one, other = (np.asarray(value, dtype=np.float64) for value in (pair.recorded, pair.again))
    if one.shape != other.shape:
        return f"shape {list(one.shape)}", f"shape {list(other.shape)}", np.array(math.inf)
    is_same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore"):
        difference = np.where(is_same, 0.0, np.abs(one - other))
    return one, other, np.where(np.isnan(difference), math.inf, difference)


def _shown(value: Any, at: tuple[Any, ...]) -> str:
    return value if isinstance(value, str) else f"{float(value[at]):.9g}"
