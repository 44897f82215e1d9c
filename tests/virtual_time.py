"""An event loop whose clock jumps to the next timer instead of waiting: hours of time-outs pass in milliseconds."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _JumpingSelector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("the loop would wait for ever: nothing is scheduled")
        if not ready:
            self.now += timeout or 0.0
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Single-threaded coroutines only: nothing outside the loop may be waited for."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        """In this thread, in the order of the calls: the clock would jump while another thread works."""

        async def call() -> Any:
            return func(*args)

        return self.create_task(call())


def run_in_virtual_time(work: Coroutine[Any, Any, Result], *, seconds: float = 1e6) -> Result:
    """The result of `work`; TimeoutError when it takes longer than `seconds` of virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(asyncio.wait_for(work, seconds))
