"""`credence scale` and `credence status` up to where Ray begins: arguments, run folders, what is printed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from system.cli import main
from system.commands.status import status_text
from system.runtime.run_status import Admission, PoolStatus, QueueStatus, RunStatus, WorkerStatus

STATUS = RunStatus(
    run="demo",
    host="head",
    pid=17,
    updated_at=100.0,
    phase="rollout",
    policy_version=12,
    num_updates=200,
    waits_for="scoring",
    queue=QueueStatus(
        groups={"leased": 0, "generating": 5, "scoring": 1, "ready": 2, "training": 8},
        published_version=12,
        oldest_lease_version=11,
        max_staleness=2,
    ),
    pools=(
        PoolStatus(
            section="rollout",
            kind="rollout worker",
            desired=2,
            num_serving=1,
            num_lost=1,
            last_loss="rollout worker 0: dead",
            num_calls_waiting=3,
            num_calls_in_flight=4,
            workers=(
                WorkerStatus(
                    name="rollout worker 1", state="serving", policy_version=12, num_calls=4, load=64,
                    node_address="10.0.0.7", node_id="a1", waits_for=None,
                ),
                WorkerStatus(
                    name="rollout worker 2", state="starting", policy_version=None, num_calls=0, load=0,
                    node_address=None, node_id=None, waits_for="{CPU: 0.5, GPU: 1}: no node has it free",
                ),
            ),
        ),
    ),
    admissions=(Admission(worker="rollout worker 1", held_version=3, published_version=3),),
)  # fmt: skip


def test_the_status_is_a_table_for_people() -> None:
    assert status_text(STATUS, now=101.2).splitlines() == [
        "demo: update 12 of 200, rollout; controller is process 17 on head, 1 s ago",
        "waits for: scoring",
        "groups: 0 leased, 5 generating, 1 scoring, 2 ready, 8 training",
        "published version 12; the oldest group is 1 behind, at most 2 when it is trained on",
        "",
        "rollout: 1 of 2 rollout workers serve; 4 calls in flight, 3 waiting; 1 lost, the last: rollout worker 0: dead",
        "  worker            state     version  calls  load  node      waits for",
        "  rollout worker 1  serving   12       4      64    10.0.0.7",
        "  rollout worker 2  starting  -        0      0     -         {CPU: 0.5, GPU: 1}: no node has it free",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["demo", "rolout=4"],
            "KIND=NUMBER: given 'rolout', expected one of rollout, reward, scorer. Fix: did you mean",
        ),
        (["demo", "rollout"], "rollout: given '', expected a whole number of workers, at least 1"),
        (["demo", "rollout=0"], "rollout: given '0', expected a whole number of workers, at least 1"),
        (["demo", "rollout=2.5"], "rollout: given '2.5'"),
        (["runs/none", "rollout=2"], "RUN: given 'runs/none', expected the folder of a run"),
        (["demo", "rollout=2"], "the name of one with the address of its cluster"),
        (["demo", "rollout=2", "--address", "nowhere"], "--address: given 'nowhere'"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["scale", *arguments]) == 2
    assert message in capsys.readouterr().err


def write_address(folder: Path, *, port: int, pid: int) -> None:
    folder.mkdir()
    (folder / "config.yaml").touch()
    address = {"run": "demo", "ray_address": f"127.0.0.1:{port}", "namespace": "credence", "actor": "demo"}
    (folder / "cluster.json").write_text(json.dumps(address | {"host": socket.gethostname(), "pid": pid}))


def test_a_run_that_has_ended_says_how_to_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    assert main(["status", str(folder)]) == 2
    assert "expected the folder of a run" in capsys.readouterr().err
    (folder / "config.yaml").touch()
    assert main(["status", str(folder)]) == 2
    assert f"run demo has ended: {folder}/cluster.json is gone. Continue it with" in capsys.readouterr().err


def test_a_run_that_was_killed_is_told_from_a_living_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(30)
    child = process.pid
    write_address(tmp_path / "demo", port=1, pid=child)
    assert main(["status", str(tmp_path / "demo")]) == 2
    assert f"run demo has ended: its controller, process {child}, is gone" in capsys.readouterr().err


def test_a_cluster_that_nobody_answers_for_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # taken, and nobody listens
        port = unused.getsockname()[1]
        write_address(tmp_path / "demo", port=port, pid=os.getpid())
        assert main(["scale", str(tmp_path / "demo"), "rollout=2"]) == 2
    assert f"the Ray cluster of run demo at 127.0.0.1:{port} cannot be reached" in capsys.readouterr().err
