"""The processes that came from another one. Used where something may be left behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence

import psutil


def children_of(process: int) -> list[int]:
    """Ended ones that nobody waited for among them."""
    return _family(process, is_recursive=False)


def descendants_of(process: int) -> list[int]:
    """Its children, theirs, and so on."""
    return _family(process, is_recursive=True)


def kill(processes: Sequence[int]) -> None:
    """SIGKILL to those that are still there."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _family(process: int, *, is_recursive: bool) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(process).children(recursive=is_recursive)]
    except psutil.NoSuchProcess:
        return []
