"""Bounds of a field: which numbers they let through, and how they read."""

from dataclasses import dataclass

import pytest

from system.errors import ConfigError
from system.fields import Bounds, check_bounds, key


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    share: float = key("A share.", 0.5, above=0, maximum=1)
    betas: tuple[float, float] = key("Two decays.", (0.9, 0.95), minimum=0, below=1)
    limit: int | None = key("A limit; null: none.", None, minimum=2)


@pytest.mark.parametrize(
    ("bounds", "words", "inside", "outside"),
    [
        (Bounds(minimum=1), "at least 1", [1, 2.5], [0, 0.999]),
        (Bounds(above=0, maximum=1), "above 0 and at most 1", [1e-9, 1], [0, 1.001]),
        (Bounds(minimum=0, below=1), "at least 0 and below 1", [0, 0.999], [-1e-9, 1]),
        (Bounds(minimum=0, maximum=3), "from 0 to 3", [0, 3], [-1, 4]),
        (Bounds(), "", [-1e9, 1e9], []),
    ],
)
def test_bounds_say_what_they_let_through(
    bounds: Bounds, words: str, inside: list[float], outside: list[float]
) -> None:
    assert str(bounds) == words
    assert [bounds.hold(number) for number in inside] == [True] * len(inside)
    assert [bounds.hold(number) for number in outside] == [False] * len(outside)


def test_a_section_inside_its_bounds_passes() -> None:
    check_bounds(_Options(), prefix="loss.options")
    check_bounds(_Options(share=1.0, limit=2), prefix="loss.options")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (_Options(share=0.0), r"loss.options.share: given 0.0, expected above 0 and at most 1. Fix: change "),
        (_Options(betas=(0.5, 1.0)), r"loss.options.betas: given \[0.5, 1.0\], expected at least 0 and below 1"),
        (_Options(limit=1), r"loss.options.limit: given 1, expected at least 2"),
    ],
)
def test_a_number_out_of_bounds_is_named_with_its_section(options: _Options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_bounds(options, prefix="loss.options")
