"""The run as a job on a cluster: `ray start --head` with a token, then plain `ray job submit`."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from credence_process import ROOT, SMALL, metric_lines, summary
from test_own_parts import OWN_KEYS, OWN_PARTS

from benchmarks.run_processes import family_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
RAY = str(Path(sys.executable).with_name("ray"))
HEAD_PORT, DASHBOARD_PORT, AGENT_PORT = 26379, 28265, 28266


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
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, capture_output=True, timeout=60, check=True)
    # in the foreground and in a session of its own, so that only this cluster is taken down again
    head = subprocess.Popen(
        [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *(f"--port={HEAD_PORT}", f"--dashboard-port={DASHBOARD_PORT}"),
            # the default is taken where another Ray runs, and then no job is accepted
            f"--dashboard-agent-listen-port={AGENT_PORT}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for_port(DASHBOARD_PORT, head=head)
        yield environment
    finally:
        family = family_of(head.pid)
        head.terminate()
        psutil.wait_procs(family, timeout=30)
        for left in family:
            if left.is_running():
                left.kill()


def test_job_runs_to_its_end_with_two_rollout_workers_and_parts_of_ones_own(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    # a user's working directory: the checkout, with modules of their own beside it
    folder = tmp_path / "job"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "tests", "docs", "runs", "__pycache__"))
    for module in OWN_PARTS.glob("*.py"):
        shutil.copy(module, folder)
    keys = (
        SMALL
        | OWN_KEYS
        | {
            "run.directory": tmp_path / "runs",
            "run.name": "job",
            "run.num_updates": 2,
            "rollout.num_workers": 2,
            "rollout.cpus_per_worker": 0.25,
        }
    )
    entrypoint = ["python", "-m", "system", "train", "configs/demo.yaml"]
    entrypoint += [f"{key}={value}" for key, value in keys.items()]

    output = _submit(cluster, entrypoint, folder=folder)

    assert "succeeded" in output
    values = summary(tmp_path / "runs" / "job")
    assert values["num_updates"] == 2
    assert values["ledger_balanced"] is True
    last = metric_lines(tmp_path / "runs" / "job")[-1]["metrics"]
    assert last["rollout/num_workers"] == 2
    assert last["weight_sync/num_receivers"] == 2
    assert last["own/num_pushed"] >= 1
    assert last["reward/short_answers_mean"] < 0


def _submit(environment: dict[str, str], entrypoint: list[str], *, folder: Path) -> str:
    """Submit, again and again while the young cluster says that its job agent is not up yet."""
    command = [RAY, "job", "submit", "--working-dir", ".", "--", *entrypoint]
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(2)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _wait_for_port(port: int, *, head: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"nothing listens on port {port}")
