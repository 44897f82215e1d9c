"""The run as a job on a cluster: `ray start --head` with a token, then plain `ray job submit`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from credence_process import ROOT, SMALL, metric_lines, summary

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
RAY = str(Path(sys.executable).with_name("ray"))
HEAD_PORT, DASHBOARD_PORT = 26379, 28265


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a user on a token-protected cluster of this machine."""
    environment = {
        **os.environ,
        "HOME": str(tmp_path),  # the token is kept in the home folder
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{DASHBOARD_PORT}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    _ray(environment, "get-auth-token", "--generate")
    _ray(
        environment, "start", "--head", "--num-cpus=2", f"--port={HEAD_PORT}", f"--dashboard-port={DASHBOARD_PORT}",
        "--disable-usage-stats",
    )  # fmt: skip
    try:
        yield environment
    finally:
        subprocess.run([RAY, "stop", "--force"], env=environment, capture_output=True, timeout=60, check=False)


def test_job_runs_to_its_end_with_two_rollout_workers(cluster: dict[str, str], tmp_path: Path) -> None:
    keys = SMALL | {
        "run.directory": tmp_path / "runs",
        "run.name": "job",
        "run.num_updates": 2,
        "cluster.address": "auto",
        "rollout.num_workers": 2,
        "rollout.cpus_per_worker": 0.25,
    }
    entrypoint = ["python", "-m", "system", "train", "configs/demo.yaml"]
    entrypoint += [f"{key}={value}" for key, value in keys.items()]

    output = _ray(cluster, "job", "submit", "--working-dir", ".", "--", *entrypoint)

    assert "succeeded" in output
    values = summary(tmp_path / "runs" / "job")
    assert values["num_updates"] == 2
    assert values["ledger_balanced"] is True
    last = metric_lines(tmp_path / "runs" / "job")[-1]["metrics"]
    assert last["rollout/num_workers"] == 2
    assert last["weight_sync/num_receivers"] == 2


def _ray(environment: dict[str, str], *arguments: str) -> str:
    completed = subprocess.run(
        [RAY, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert completed.returncode == 0, f"{completed.stdout[-4000:]}\n{completed.stderr[-4000:]}"
    return completed.stdout
