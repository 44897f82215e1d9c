"""What the doctor found, as records without a judgement, and what a configuration needs. Judged by checks.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds GPU memory, as the driver tells."""

    pid: int
    used_mib: int
    gpu: str
    is_running: bool
    title: str = ""
    parent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node. Limits are -1 where there is none."""

    address: str
    python: str
    packages: Mapping[str, str]  # version by normalised name
    shared_memory_bytes: int
    shared_memory_free_bytes: int
    object_store_bytes: int | None  # None: Ray does not run yet
    max_open_files: int
    max_processes: int
    num_processes: int  # that run, threads included
    disk_free_bytes: int | None  # where the runs are; None: not asked
    gpu_processes: tuple[GpuProcess, ...] | str  # str: why nobody can tell
    is_container: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A TCP connection from one node to another; `error` None: it works."""

    source: str
    target: str
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Seconds that a node's clock is ahead of that of this machine, known to `uncertainty` seconds."""

    address: str
    ahead_seconds: float
    uncertainty_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrip:
    """An all_reduce over one rank on each node, or two on one; `errors` by rank's node."""

    num_ranks: int
    seconds: float
    errors: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFolder:
    """Where a file was written; `blind` nodes do not see it."""

    folder: str
    blind: tuple[str, ...]
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything that was found. `silent`: nodes that did not answer, and why."""

    where: str
    nodes: tuple[NodeFacts, ...]
    silent: tuple[tuple[str, str], ...]
    links: tuple[Link, ...]
    clocks: tuple[Clock, ...]
    round_trip: RoundTrip
    shared_folder: SharedFolder | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a configuration needs of the machines; None: it is not known."""

    folder: Path | None
    snapshot_bytes: int | None
    num_snapshots: int
    checkpoint_bytes: int | None
    num_checkpoints: int
    unknown_because: str = ""


def node_facts(address: str, *, object_store_bytes: int | None, answer: Mapping[str, Any]) -> NodeFacts:
    """The record of what NodeProbe.facts answered."""
    gpu = answer["gpu_processes"]
    processes = gpu if isinstance(gpu, str) else tuple(GpuProcess(**process) for process in gpu)
    fields = {**answer, "gpu_processes": processes}
    return NodeFacts(address=address, object_store_bytes=object_store_bytes, **fields)
