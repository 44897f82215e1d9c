"""A Ray cluster of two raylets on this machine: the doctor's probes and the watchdog's stacks reach both."""

import json
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

from system.commands.doctor import main
from system.runtime.doctor.nodes import joined
from system.runtime.stack_dump import cluster_stacks
from tests.runtime.stuck_actor import RewardWorker

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Its address. The second node has the smaller object store."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 400 * 2**20})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, resources={"second": 1})
        yield cluster.address
    finally:
        cluster.shutdown()


def test_the_doctor_looks_at_every_node_and_fails_for_the_one_that_is_too_small(
    cluster: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = [
        f"run.directory={tmp_path}",
        "reward.terms=[{scorer: verifier}, {scorer: self_certainty, weight: 0}]",
        "scorer.mode=lagged",
        "scorer.lag_versions=40",  # 42 snapshots of 4.3 MB
    ]
    assert main(["--address", cluster, "--json", str(DEMO), *keys]) == 1
    answer = json.loads(capfd.readouterr().out)
    assert cluster in answer["where"]
    by_name: dict[str, list[dict[str, str]]] = {}
    for check in answer["checks"]:
        by_name.setdefault(check["name"], []).append(check)
    for name in ("nodes", "versions", "same versions", "ports", "collective", "run folder", "disk", "clocks"):
        assert [check["status"] for check in by_name[name]] == ["ok"], by_name[name]
    assert by_name["nodes"][0]["found"].startswith("2: ")
    assert by_name["ports"][0]["found"].startswith("2 connections")
    assert "over 2 Gloo ranks" in by_name["collective"][0]["found"]
    (small,) = by_name["shared memory"]
    assert (small["status"], small["expected"]) == ("FAIL", "0.17 GiB for 42 snapshots of the weights")
    assert "object store of 0.10 GiB" in small["found"]
    assert list(tmp_path.iterdir()) == []


def test_the_stacks_of_a_stopped_actor_come_from_its_node(cluster: str) -> None:
    with joined(cluster):
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
        del call
    assert len(re.findall(r"^-- node ", text, re.MULTILINE)) == 2
    assert text.count("no process of RewardWorker runs here") == 1
    assert f"process {process.pid} (ray::RewardWorker.wait_in_a_verifier): stopped" in text
    assert text.count("stuck_actor.py") == 1
