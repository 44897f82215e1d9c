"""One checkpoint at a time: copied while the learner waits, written and given its name while training goes on.

    start    the checkpoint before is finished ─> ranks copy their state to host memory           the learner waits
    task     ranks write, sync and hash ─> the run state is written, the folder gets its name     nobody waits

Called by the controller. What goes wrong in the task is raised by the next `start` or by `finish`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from system.data.file_stamps import FileStamp
from system.runtime.checkpoint import CheckpointStore, RunState


class WritesCheckpoints(Protocol):
    """What the learner group does for it."""

    async def start_checkpoint(self, directory: Path) -> None: ...

    async def written_checkpoint(self, *, seconds: float) -> dict[str, FileStamp]: ...


class CheckpointWriting:
    """At most one is being written."""

    def __init__(self, *, learner_group: WritesCheckpoints, store: CheckpointStore, timeout_seconds: float) -> None:
        self._learner_group = learner_group
        self._store = store
        self._timeout_seconds = timeout_seconds
        self._task: asyncio.Task[None] | None = None
        self._seconds: list[float] = []

    async def start(self, state: RunState, *, after: Sequence[asyncio.Future[None]] = ()) -> None:
        """Returns when the learner may go on; `state` has to be of its present weights.

        The checkpoint gets its name when `after` is done: what was logged up to these weights, because a resumed run
        logs only what comes after them. Raises what went wrong with the checkpoint before.
        """
        await self.finish()
        directory = await asyncio.to_thread(self._store.partial_directory, state.policy_version)
        await self._learner_group.start_checkpoint(directory)
        self._task = asyncio.create_task(self._write(directory, state, after=after))

    async def finish(self) -> None:
        """Waits until the last one has its name. Raises what went wrong with it, once."""
        if self._task is not None:
            task = self._task
            await asyncio.wait([task])  # unlike the task itself, it may be cancelled
            self._task = None
            task.result()

    async def close(self, *, seconds: float) -> None:
        """Give the last one this long, then give it up. Raises nothing: another error ends the run already."""
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait([task], timeout=seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def take_seconds(self) -> list[float]:
        """How long the writing of each one took that was finished since the last call."""
        taken, self._seconds = self._seconds, []
        return taken

    async def _write(self, directory: Path, state: RunState, *, after: Sequence[asyncio.Future[None]]) -> None:
        start = time.perf_counter()
        written = await self._learner_group.written_checkpoint(seconds=self._timeout_seconds)
        if after:
            await asyncio.wait(after)
        for each in after:
            each.result()
        await asyncio.to_thread(self._store.commit, directory, state, written=written)
        self._seconds.append(time.perf_counter() - start)
