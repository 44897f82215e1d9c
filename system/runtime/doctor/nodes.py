"""The nodes to look at: this machine alone, or one actor on each node of a Ray cluster. Called by examine.py."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from system.errors import ConfigError
from system.runtime.doctor import node_probe
from system.runtime.doctor.node_probe import NodeProbe


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A method of NodeProbe, asked of one node."""

    address: str
    method: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Its value, or why there is none."""

    value: Any = None
    error: str | None = None


class Nodes(Protocol):
    """All nodes; `object_store_bytes` of each, None where Ray does not run."""

    where: str
    object_store_bytes: dict[str, int | None]

    def ask(self, questions: Sequence[Question], *, seconds: float) -> list[Answer]:
        """All at the same time; answers in the order of the questions. Never raises on a node that fails."""
        ...


class ThisMachine:
    """Without Ray."""

    def __init__(self, address: str) -> None:
        self.where = "this machine alone (no cluster was given, and none runs here)"
        self.object_store_bytes: dict[str, int | None] = {address: None}
        self._probe = NodeProbe()

    def ask(self, questions: Sequence[Question], *, seconds: float) -> list[Answer]:
        pool = ThreadPoolExecutor(max(1, len(questions)))
        calls = [pool.submit(getattr(self._probe, each.method), *each.arguments) for each in questions]
        wait_for_futures(calls, timeout=seconds)
        pool.shutdown(wait=False, cancel_futures=True)
        return [_answer_of(call, seconds=seconds) for call in calls]


def _answer_of(call: Future[Any], *, seconds: float) -> Answer:
    if not call.done():
        return Answer(error=f"no answer within {seconds:g} s")
    error = call.exception()
    return Answer(value=call.result()) if error is None else Answer(error=f"{type(error).__name__}: {error}")


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Connected to the cluster meanwhile. Raises ConfigError when there is none."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    fix = "'ray start --head' there, or --address local for this machine alone"
    if not answers(address):  # Ray would try for minutes
        raise ConfigError("--address", given=address, expected="HOST:PORT of a Ray cluster that answers", fix=fix)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError) as error:  # RuntimeError: another version of Ray or Python
        raise ConfigError(
            "--address",
            given=address,
            expected=f"a running Ray cluster of this version of Python and Ray ({error})",
            fix=fix,
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def answers(address: str, *, seconds: float = 5.0) -> bool:
    """Whether somebody accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except (OSError, ValueError):
        return False
    return True


class ClusterNodes:
    """One actor on each node that is alive, which takes no CPU. Ray is connected to the cluster."""

    def __init__(self, address: str) -> None:
        cloudpickle.register_pickle_by_value(node_probe)  # nodes need not have the project
        self.where = f"the Ray cluster at {address}"
        self.object_store_bytes: dict[str, int | None] = {}
        self._actors: dict[str, Any] = {}
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            name = node["NodeManagerAddress"]
            if name in self._actors:  # several raylets on one machine
                name = f"{name} ({node['NodeID'][:8]})"
            pinned = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
            actor = ray.remote(NodeProbe).options(num_cpus=0, max_concurrency=32, scheduling_strategy=pinned)
            self._actors[name] = actor.remote()
            self.object_store_bytes[name] = int(node["Resources"].get("object_store_memory", 0))

    def ask(self, questions: Sequence[Question], *, seconds: float) -> list[Answer]:
        calls = [getattr(self._actors[each.address], each.method).remote(*each.arguments) for each in questions]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=seconds) if calls else ([], [])
        done = set(ready)
        answers = []
        for call in calls:
            if call not in done:
                answers.append(Answer(error=f"no answer within {seconds:g} s"))
                continue
            try:
                answers.append(Answer(value=ray.get(call, timeout=seconds)))
            except RayError as error:
                answers.append(Answer(error=_first_line(error)))
        return answers


def host_of(address: str) -> str:
    """The host of a node's name."""
    return address.partition(" ")[0]


def _first_line(error: RayError) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
