"""One session on Ray: starts or joins it, runs a coroutine that a signal can stop, and leaves no process behind.

Used by `credence train` and `credence evaluate`.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import ray

from system.config.schema import Config
from system.errors import first_error
from system.runtime.placement import check_cluster_holds, start_ray


class TerminatedError(BaseException):
    """SIGTERM while nothing that can be cancelled was running yet. No Exception: nothing may swallow it."""


def run_on_ray(config: Config, work: Callable[[], Coroutine[Any, Any, None]]) -> signal.Signals | None:
    """Run `work` to its end and return None, or the signal that stopped it.

    SIGINT and SIGTERM cancel `work`, which takes its actors down; then Ray goes too. Of errors that came together
    the first one is raised.
    """
    signal.signal(signal.SIGTERM, _raise_terminated)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background with it ignored
    try:
        start_ray(config)
        signal.signal(signal.SIGTERM, _raise_terminated)  # ray.init installs a handler of its own
        check_cluster_holds(config)
        return asyncio.run(_run(work))
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    except KeyboardInterrupt:
        return signal.SIGINT
    except TerminatedError:
        return signal.SIGTERM
    finally:
        # a step that is still under way answers too late: Ray would print that nobody can take its snapshot any more
        logging.getLogger("ray._private.serialization").setLevel(logging.CRITICAL)
        ray.shutdown()


async def _run(work: Callable[[], Coroutine[Any, Any, None]]) -> signal.Signals | None:
    task = asyncio.create_task(work())
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        if not received:
            received.append(number)
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    return received[0] if received else None


def _raise_terminated(number: int, frame: object) -> None:
    raise TerminatedError
