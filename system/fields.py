"""A dataclass field that documents itself: its sentence and its bounds.

The sections of the configuration and the options of an algorithm, a loss or a scorer are made of such fields; whoever
builds one from what a user wrote calls `check_bounds`. Imported by every layer; imports only the errors.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from system.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a number may be: `minimum <= x <= maximum` and `above < x < below`; None does not bound."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None

    def hold(self, number: float) -> bool:
        """Whether the number is inside."""
        return (
            (self.minimum is None or number >= self.minimum)
            and (self.maximum is None or number <= self.maximum)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        """The bounds in words, e.g. "at least 0 and below 1"; empty without any."""
        if self.minimum is not None and self.maximum is not None:
            return f"from {self.minimum} to {self.maximum}"
        words = {"at least": self.minimum, "above": self.above, "at most": self.maximum, "below": self.below}
        return " and ".join(f"{word} {number}" for word, number in words.items() if number is not None)


def key(
    sentence: str,
    default: Any = MISSING,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    default_factory: Callable[[], Any] | None = None,
) -> Any:
    """A field with one sentence, its unit in it, and the bounds of its number; no default means required.

    A default that can change (a mapping) is made by `default_factory`.
    """
    bounds = Bounds(minimum=minimum, maximum=maximum, above=above, below=below)
    metadata = {"sentence": sentence, "bounds": bounds}
    if default_factory is not None:
        return field(default_factory=default_factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoOptions:
    """The options of whatever has none."""


def check_bounds(section: Any, *, prefix: str) -> None:
    """Every number of a dataclass of `key` fields lies in its bounds; null passes. Raises ConfigError for the first."""
    for entry in fields(section):
        bounds: Bounds = entry.metadata["bounds"]
        value = getattr(section, entry.name)
        numbers = [value] if isinstance(value, int | float) else value if isinstance(value, tuple) else []
        if not all(bounds.hold(number) for number in numbers):
            name = f"{prefix}.{entry.name}"
            given = list(value) if isinstance(value, tuple) else value
            raise ConfigError(name, given=given, expected=str(bounds), fix=f"change {name}")
