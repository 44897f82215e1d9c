"""The processes that came from another one, as /proc knows them. Used where something may be left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path


def children_of(process: int) -> list[int]:
    """Ended ones that nobody waited for among them. None is found where there is no /proc."""
    return [child for child, parent in _parents().items() if parent == process]


def descendants_of(process: int) -> list[int]:
    """Its children, theirs, and so on."""
    parents = _parents()
    found: list[int] = []
    generation = [process]
    while generation:
        generation = [child for child, parent in parents.items() if parent in generation]
        found += generation
    return found


def kill(processes: Sequence[int]) -> None:
    """SIGKILL to those that are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _parents() -> dict[int, int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # the name of a program, in parentheses, may hold anything
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    return parents
