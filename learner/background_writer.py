"""Writes files in a thread while training goes on: one save at a time. Used by learner/learner.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path

from safetensors import SafetensorError

from system.data.file_stamps import FileStamp, stamp_files
from system.errors import CheckpointError, CredenceError

Write = Callable[[], Sequence[Path]]  # writes files and returns their paths; touches nothing that training changes


class BackgroundWriter:
    """`wait` may be called from any thread, and again: it answers for the newest save."""

    def __init__(self, *, who: str) -> None:
        self._who = who
        self._thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._newest: futures.Future[dict[str, FileStamp]] | None = None

    def settle(self) -> None:
        """Until nothing is being written, whether it succeeded or not."""
        if self._newest is not None:
            futures.wait([self._newest])

    def start(self, writes: Sequence[Write]) -> None:
        """Returns at once. Call `settle` before the copies are made: they use the memory of those before."""
        assert self.is_done, "the save before is still being written"
        self._newest = self._thread.submit(_write_all, list(writes))

    @property
    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._newest is None or self._newest.done()

    def wait(self) -> dict[str, FileStamp]:
        """Until the newest save is on disk; its files by path. Raises CheckpointError with what went wrong."""
        if self._newest is None:
            return {}
        try:
            return self._newest.result()
        except (OSError, SafetensorError, CredenceError) as error:
            raise CheckpointError(f"{self._who} could not write its part of a checkpoint: {error}") from error


def _write_all(writes: Sequence[Write]) -> dict[str, FileStamp]:
    return stamp_files([path for write in writes for path in write()])
