"""Waits with a deadline whose errors name who did not answer. Every wait of the controller goes through here."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextvars import ContextVar
from typing import Protocol, TypeVar

from ray.exceptions import RayTaskError

from system.errors import CredenceError, DeadlineError

Result = TypeVar("Result")


class WaitObserver(Protocol):
    """Hears of every wait; see open_waits.py."""

    def begin(self, names: Sequence[str], *, what: str, seconds: float) -> int: ...

    def end(self, wait: int) -> None: ...

    async def before_giving_up(self, late: Sequence[str], *, what: str, seconds: float) -> None: ...


# of the tasks that were started where it is set; None: nobody listens
wait_observer: ContextVar[WaitObserver | None] = ContextVar("wait_observer", default=None)


class LateOnly:
    """Lets an observer hear of missed deadlines alone: that pings are answered is no progress of anything."""

    def __init__(self, observer: WaitObserver) -> None:
        self._observer = observer

    def begin(self, names: Sequence[str], *, what: str, seconds: float) -> int:
        return 0

    def end(self, wait: int) -> None:
        pass

    async def before_giving_up(self, late: Sequence[str], *, what: str, seconds: float) -> None:
        await self._observer.before_giving_up(late, what=what, seconds=seconds)


async def within(awaitable: Awaitable[Result], *, who: str, what: str, seconds: float) -> Result:
    """The result of `awaitable`; DeadlineError naming `who` and `what` when it takes longer than `seconds`.

    The deadline also holds when the awaited code refuses to be cancelled: it is left behind, not waited for.
    """
    return (await all_within({who: awaitable}, what=what, seconds=seconds))[who]


async def all_within(awaitables: Mapping[str, Awaitable[Result]], *, what: str, seconds: float) -> dict[str, Result]:
    """The results by name, once all have answered.

    The first error ends the wait and is raised with a note that names whose it was: one of ours as it was raised in the
    actor, without the traceback that Ray makes part of its message; others as they are. At the deadline
    DeadlineError names all who did not answer; before it is raised, an observer may look at what they do. Either way,
    and when the caller is cancelled, the rest is cancelled.
    """
    if not awaitables:
        return {}
    observer = wait_observer.get()
    wait = observer.begin(list(awaitables), what=what, seconds=seconds) if observer is not None else 0
    tasks = {who: asyncio.ensure_future(awaitable) for who, awaitable in awaitables.items()}
    try:
        done, pending = await asyncio.wait(tasks.values(), timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for who, task in tasks.items():
            error = task.exception() if task in done and not task.cancelled() else None
            if error is not None:
                error.add_note(f"{who} failed at '{what}'")
                if isinstance(error, RayTaskError) and isinstance(error.cause, CredenceError):
                    raise error.cause from error
                raise error
        if pending:
            late = [who for who, task in tasks.items() if task in pending]
            if observer is not None:
                await observer.before_giving_up(late, what=what, seconds=seconds)
            raise DeadlineError(", ".join(late), what=what, seconds=seconds)
        return {who: task.result() for who, task in tasks.items()}
    finally:
        if observer is not None:
            observer.end(wait)
        for task in tasks.values():
            if not task.done():
                task.cancel()
                task.add_done_callback(_retrieve_error)
            else:
                _retrieve_error(task)


def _retrieve_error(task: "asyncio.Future[Result]") -> None:
    # asyncio prints a traceback for an error that nobody looked at; the first one was raised already.
    if not task.cancelled():
        task.exception()
