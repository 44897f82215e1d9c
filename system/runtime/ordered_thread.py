"""A thread for file writes, figures and W&B calls, so that the event loop dispatches and nothing else.

Used by the controller for all that it reports.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec

Parameters = ParamSpec("Parameters")


class OrderedThread:
    """Runs functions one after another, in the order in which they came; a failure is raised at the next call."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._pending: deque[asyncio.Future[None]] = deque()
        self._num_submitted = 0

    @property
    def num_waiting(self) -> int:
        """Functions that have not come to their end."""
        return sum(1 for each in self._pending if not each.done())

    @property
    def num_done(self) -> int:
        return self._num_submitted - self.num_waiting

    def submit(
        self, function: Callable[Parameters, None], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> None:
        """Returns at once. Raises what an earlier function raised."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._num_submitted += 1
        work = functools.partial(function, *arguments, **named)
        self._pending.append(asyncio.get_running_loop().run_in_executor(self._executor, work))

    @property
    def pending(self) -> tuple[asyncio.Future[None], ...]:
        """What was submitted and not seen to be done yet."""
        return tuple(self._pending)

    async def finish(self) -> None:
        """Waits until all is done. Raises what a function raised."""
        while self._pending:
            await self._pending.popleft()

    def close(self) -> None:
        """Blocks until all that was submitted is done; raises nothing."""
        self._executor.shutdown(wait=True)
