"""A Ray cluster of two raylets on this machine: the doctor's probes and the watchdog's stacks reach both."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from system.runtime.doctor.checks import judge
from system.runtime.doctor.examine import examine
from system.runtime.doctor.facts import Needs
from system.runtime.doctor.nodes import ClusterNodes, joined
from system.runtime.stack_dump import cluster_stacks
from system.stack_signal import catch_stack_signal

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
SNAPSHOT_BYTES = 20 * 2**20


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Its address. The second node has room for four snapshots, not for eight."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200 * 2**20})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, resources={"second": 1})
        with joined(cluster.address):
            yield cluster.address
    finally:
        cluster.shutdown()


def needs(folder: Path, *, num_snapshots: int) -> Needs:
    return Needs(
        folder=folder,
        snapshot_bytes=SNAPSHOT_BYTES,
        num_snapshots=num_snapshots,
        checkpoint_bytes=2**20,
        num_checkpoints=3,
    )


def test_the_doctor_looks_at_every_node(cluster: str, tmp_path: Path) -> None:
    found = examine(ClusterNodes(cluster), folder=tmp_path)
    assert (len(found.nodes), found.silent) == (2, ())
    assert [link.error for link in found.links] == [None, None]
    assert (found.round_trip.num_ranks, found.round_trip.errors) == (2, ())
    assert found.shared_folder is not None
    assert found.shared_folder.blind == ()
    assert {clock.address for clock in found.clocks} == {node.address for node in found.nodes}

    checks = {check.name: check for check in judge(found, needs(tmp_path, num_snapshots=4))}
    for name in ("nodes", "versions", "same versions", "shared memory", "ports", "collective", "run folder", "disk"):
        assert checks[name].status == "ok", checks[name]
    (short,) = [each for each in judge(found, needs(tmp_path, num_snapshots=8)) if each.name == "shared memory"]
    assert short.status == "FAIL"
    assert "object store of 0.10 GiB" in short.found


class RewardWorker:
    """An actor that is titled as the real one, on the second node."""

    def start(self) -> int:
        catch_stack_signal()
        return os.getpid()

    def wait_in_a_verifier(self) -> None:
        while True:
            time.sleep(0.01)


def test_the_stacks_of_a_stopped_actor_come_from_its_node(cluster: str) -> None:
    actor: Any = ray.remote(RewardWorker).options(num_cpus=1, resources={"second": 1}).remote()
    process = psutil.Process(ray.get(actor.start.remote(), timeout=120))
    call = actor.wait_in_a_verifier.remote()
    deadline = time.monotonic() + 60
    while "wait_in_a_verifier" not in process.cmdline()[0] and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGSTOP)
    try:
        text = cluster_stacks(["RewardWorker"], 60.0)
    finally:
        process.send_signal(signal.SIGCONT)
        ray.kill(actor)
    assert len(re.findall(r"^-- node ", text, re.MULTILINE)) == 2
    assert text.count("no process of RewardWorker runs here") == 1
    assert f"process {process.pid} (ray::RewardWorker.wait_in_a_verifier): stopped" in text
    assert text.count("test_cluster_nodes.py") == 1
    del call
