"""A run that is told to end soon: it finishes the update that it makes, keeps it in a checkpoint, and goes.

    SIGTERM ─> request ─> nothing uninterrupted is under way ─> the train loop is cancelled ─> finish ─> CancelledError

What waits (for a batch, for an evaluation) is given up at once. Asked by session.py, run by the controller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any


class Preemption:
    """`uninterrupted` is held while learner, run state and checkpoint are not of one version."""

    def __init__(self) -> None:
        self.uninterrupted = asyncio.Lock()
        self._requested = asyncio.Event()
        self._is_running = False

    @property
    def is_running(self) -> bool:
        """Whether there is something that may be finished."""
        return self._is_running

    def request(self) -> bool:
        """End soon. False: there is nothing to finish, cancel the run instead."""
        self._requested.set()
        return self._is_running

    async def run(self, work: Coroutine[Any, Any, None], *, finish: Callable[[], Awaitable[None]]) -> None:
        """`work` to its end. After a request it is cut short, `finish` is called, and CancelledError ends the run."""
        working = asyncio.ensure_future(work)
        requested = asyncio.ensure_future(self._requested.wait())
        self._is_running = True
        try:
            await asyncio.wait((working, requested), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                async with self.uninterrupted:
                    working.cancel()
                await asyncio.wait((working,))
            if not working.cancelled():
                return working.result()
            await finish()
            raise asyncio.CancelledError("the run was asked to end")
        finally:
            self._is_running = False
            requested.cancel()
            working.cancel()
            await asyncio.wait((working,))
            if not working.cancelled():
                working.exception()  # raised above, or another error ends the run already
