"""One session on Ray: starts or joins it, runs a coroutine that a signal can stop, and leaves no process behind.

Used by `credence train` and `credence evaluate`.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import ray

from system.config.machine import joins_cluster
from system.config.schema import Config
from system.errors import ClusterLostError, first_error
from system.runtime.cluster_watch import watch_cluster
from system.runtime.placement import check_cluster_holds, start_ray
from system.runtime.preemption import Preemption
from system.runtime.process_family import descendants_of, kill

_LAST_SECONDS = 15.0  # for an orderly end without a cluster, whose calls may wait for it for ever


class TerminatedError(BaseException):
    """SIGTERM while nothing that can be cancelled was running yet. No Exception: nothing may swallow it."""


def run_on_ray(
    config: Config,
    work: Callable[[], Coroutine[Any, Any, None]],
    *,
    preemption: Preemption | None = None,
    last_words: Callable[[ClusterLostError], str] = str,
) -> signal.Signals | None:
    """Run `work` to its end and return None, or the signal that stopped it.

    SIGINT cancels `work`, which takes its actors down; then Ray goes too. SIGTERM does the same, after at most
    run.grace_seconds for what `preemption` can finish; a second signal ends that at once. Of errors that came together
    the first one is raised; ClusterLostError when Ray itself broke down. Where that hinders an orderly end, the process
    ends with exit code 2 and `last_words` as its line.
    """
    signal.signal(signal.SIGTERM, _raise_terminated)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background with it ignored
    try:
        start_ray(config)
        signal.signal(signal.SIGTERM, _raise_terminated)  # ray.init installs a handler of its own
        check_cluster_holds(config)
        return asyncio.run(_run(config, work, preemption=preemption or Preemption(), last_words=last_words))
    except BaseExceptionGroup as group:
        raise first_error(group) from group
    except KeyboardInterrupt:
        return signal.SIGINT
    except TerminatedError:
        return signal.SIGTERM
    finally:
        # a step that is still under way answers too late: Ray would print that nobody can take its snapshot any more
        logging.getLogger("ray._private.serialization").setLevel(logging.CRITICAL)
        # without its cluster a local Ray leaves agents behind, which are nobody's children once its raylet is gone
        left = descendants_of(os.getpid()) if isinstance(sys.exc_info()[1], ClusterLostError) else []
        ray.shutdown()
        kill(left)


async def _run(
    config: Config,
    work: Callable[[], Coroutine[Any, Any, None]],
    *,
    preemption: Preemption,
    last_words: Callable[[ClusterLostError], str],
) -> signal.Signals | None:
    on_loss = partial(_end_hard_later, last_words=last_words)
    # first: `work` may get stuck in Ray before it waits for anything
    watching = asyncio.create_task(watch_cluster(is_local=not joins_cluster(config.cluster), on_loss=on_loss))
    task = asyncio.create_task(work())
    stop = _Stop(task, preemption=preemption, grace_seconds=config.run.grace_seconds)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.receive, number)
    try:
        await asyncio.wait((task, watching), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()  # nothing can be saved any more; processes that still answer are ended
            await asyncio.wait((task,))
            watching.result()
        task.result()
    except asyncio.CancelledError:
        if not stop.received:
            raise
    finally:
        watching.cancel()
        await asyncio.wait((watching,))
    return stop.received[0] if stop.received else None


def _end_hard_later(error: ClusterLostError, *, last_words: Callable[[ClusterLostError], str]) -> None:
    """End this process and all that came from it when it is still there in a while. Needs nothing of Ray."""

    def end() -> None:
        print(f"credence: {last_words(error)}", file=sys.stderr, flush=True)
        kill(descendants_of(os.getpid()))
        os._exit(2)

    timer = threading.Timer(_LAST_SECONDS, end)
    timer.daemon = True
    timer.start()


class _Stop:
    """What the signals do to a run; a signal that comes while it ends does nothing."""

    def __init__(self, task: asyncio.Task[None], *, preemption: Preemption, grace_seconds: float) -> None:
        self._task = task
        self._preemption = preemption
        self._grace_seconds = grace_seconds
        self.received: list[signal.Signals] = []

    def receive(self, number: signal.Signals) -> None:
        self.received.append(number)
        if len(self.received) > 1:
            self._end_what_runs()
        elif number == signal.SIGTERM and self._grace_seconds > 0 and self._preemption.request():
            text = (
                f"SIGTERM: what is new is saved within {self._grace_seconds:g} s; a second signal ends the run at once"
            )
            print(text, file=sys.stderr, flush=True)
            asyncio.get_running_loop().call_later(self._grace_seconds, self._end_what_runs)
        else:
            self._task.cancel()

    def _end_what_runs(self) -> None:
        if self._preemption.is_running and not self._task.cancelling():
            self._task.cancel()


def _raise_terminated(number: int, frame: object) -> None:
    raise TerminatedError
