"""RUN_DIR/stacks/NUMBER-STAGE.txt: what every process concerned with a stalled stage was doing.

    this process        its threads (faulthandler) and its asyncio tasks
    processes of        children of this one where the run started Ray itself;
    its actors          else on every node of the cluster, in a Ray task that is pinned there

Called by watchdog.py, in a thread of its own: the event loop may be what stands still.
"""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from system.runtime.process_stacks import stacks_of_actors

StacksOfActors = Callable[[Sequence[str], float], str]


class StackDump:
    """Writes the files of one session of a run. `stacks_of_actors(classes, seconds)` gives those of the actors."""

    def __init__(self, folder: Path, *, stacks_of_actors: StacksOfActors) -> None:
        self._folder = folder
        self._stacks_of_actors = stacks_of_actors
        taken = [int(path.name[:3]) for path in folder.glob("[0-9][0-9][0-9]-*.txt")]
        self._numbers = itertools.count(max(taken, default=0) + 1)

    def next_path(self, name: str) -> Path:
        """The next file, of a stage or a kind of worker."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{next(self._numbers):03d}-{re.sub('[^a-z0-9]+', '-', name.lower())}.txt"

    def write(
        self,
        path: Path,
        *,
        lines: Sequence[str],
        actors: Sequence[str],
        loop: asyncio.AbstractEventLoop,
        seconds: float,
    ) -> None:
        """Headed by `lines`. It has this process's stacks before the others are looked for."""
        with path.open("w") as file:
            file.write("\n".join((time.strftime("%Y-%m-%d %H:%M:%S"), *lines)) + "\n\n")
            file.write(f"== the controller, process {os.getpid()}: threads\n")
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.write("\n== the controller: asyncio tasks\n" + task_stacks(loop) + "\n")
            file.flush()
            if actors:
                file.write("\n== actors\n" + self._stacks_of_actors(actors, seconds) + "\n")


def task_stacks(loop: asyncio.AbstractEventLoop) -> str:
    """What every task of a loop awaits, equal ones as one; may be called from another thread."""
    names: dict[str, list[str]] = {}
    for task in asyncio.all_tasks(loop):
        awaited = re.sub("0x[0-9a-f]+", "0x..", repr(getattr(task, "_fut_waiter", None)))[:200]
        stack = "\n".join((*_awaited(task.get_coro()), f"    waits for {awaited}"))
        names.setdefault(stack, []).append(task.get_name())
    return "\n".join(
        f"{len(tasks)} x {', '.join(sorted(tasks)[:8])}\n{stack}" for stack, tasks in sorted(names.items())
    )


def _awaited(awaitable: Any) -> Iterator[str]:
    """Where each coroutine stands, from the outermost inwards."""
    for kind in ("cr", "ag", "gi"):
        frame = getattr(awaitable, f"{kind}_frame", None)
        if frame is not None:
            code = frame.f_code
            yield f"    {code.co_filename}:{frame.f_lineno} in {code.co_qualname}"
            inner = getattr(awaitable, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
            if inner is not None:
                yield from _awaited(inner)


def local_stacks(actors: Sequence[str], seconds: float) -> str:
    """Of a run that started Ray itself: the actors descend from this process."""
    return stacks_of_actors(os.getpid(), actors, seconds=seconds)


def cluster_stacks(actors: Sequence[str], seconds: float) -> str:
    """Of all nodes. A node that does not answer in time is named; runs of others beside ours are looked at as well."""
    calls: dict[Any, str] = {}
    for node in ray.nodes():
        if node["Alive"]:
            pinned = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            task = ray.remote(_stacks_on_node).options(num_cpus=0, max_retries=0, scheduling_strategy=pinned)
            calls[task.remote(list(actors), seconds)] = node["NodeManagerAddress"]
    ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=2 * seconds)
    texts = []
    for call, address in calls.items():
        try:
            text = ray.get(call, timeout=0) if call in ready else "it does not answer"
        except RayError as error:
            text = f"it does not answer: {type(error).__name__}"
        texts.append(f"-- node {address}\n{text}")
    return "\n\n".join(texts)


def _stacks_on_node(actors: Sequence[str], seconds: float) -> str:
    return stacks_of_actors(int(os.environ["RAY_RAYLET_PID"]), actors, seconds=seconds)
