"""`credence train --retries`, with small programs in place of the driver."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from system.commands.retries import first_attempt, is_worth_another, next_attempt
from system.config.schema import RunConfig

ROOT = Path(__file__).parents[2]
SUPERVISOR = """
import sys
from pathlib import Path
from system.commands.retries import train_with_retries
from system.config.schema import RunConfig
run = RunConfig(name="run", directory=sys.argv[1], num_updates=1)
command = (sys.executable, "-c", Path(sys.argv[2]).read_text())
sys.exit(train_with_retries(["a.yaml"], resume=None, run=run, retries=2, command=command, orphan_seconds=1.0))
"""
# the child: notes its arguments; the first one leaves a checkpoint and a process, then it is killed
DRIVER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder = Path({folder!r})
log = folder / "attempts"
attempt = len(log.read_text().splitlines()) if log.exists() else 0
with log.open("a") as file:
    file.write(json.dumps([os.getpid(), *sys.argv[1:]]) + "\\n")
(folder / "run" / "checkpoints" / "update_000002").mkdir(parents=True, exist_ok=True)
{body}
"""
KILLED_ONCE = """
if attempt == 0:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True)
    (folder / "left").write_text(str(left.pid))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def make_run(directory: Path) -> RunConfig:
    return RunConfig(name="run", directory=str(directory), num_updates=1)


def supervise(directory: Path, *, body: str) -> "subprocess.Popen[str]":
    program = directory / "driver.py"
    program.write_text(DRIVER.format(folder=str(directory), body=body))
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(directory), str(program)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def attempts(directory: Path) -> list[list[object]]:
    return [json.loads(line) for line in (directory / "attempts").read_text().splitlines()]


def test_a_killed_driver_goes_on_from_its_checkpoint_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, body=KILLED_ONCE)
    _, errors = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 0
    first, second = attempts(tmp_path)
    assert first[1:] == ["a.yaml", "run.name=run"]
    assert second[1:] == ["--resume", str(tmp_path / "run")]
    assert "the run ended by SIGKILL; attempt 2 of at most 3: credence train --resume" in errors
    assert not psutil.pid_exists(int((tmp_path / "left").read_text()))


def test_a_driver_that_always_dies_is_given_up_after_n_retries(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, body="os.kill(os.getpid(), signal.SIGKILL)")
    supervisor.communicate(timeout=60)
    assert (supervisor.returncode, len(attempts(tmp_path))) == (128 + signal.SIGKILL, 3)


def test_a_mistake_of_the_user_is_not_tried_again(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, body="sys.exit(2)")
    supervisor.communicate(timeout=60)
    assert (supervisor.returncode, len(attempts(tmp_path))) == (2, 1)


def test_sigterm_is_handed_on_and_ends_the_retries(tmp_path: Path) -> None:
    body = """
signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
(folder / "ready").touch()
time.sleep(100)
"""
    supervisor = supervise(tmp_path, body=body)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
        assert supervisor.poll() is None
    supervisor.send_signal(signal.SIGTERM)
    supervisor.communicate(timeout=60)
    assert (supervisor.returncode, len(attempts(tmp_path))) == (1, 1)


def test_a_supervisor_that_is_killed_takes_the_driver_along(tmp_path: Path) -> None:
    supervisor = supervise(tmp_path, body='(folder / "ready").touch(); time.sleep(100)')
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
        assert supervisor.poll() is None
    supervisor.kill()
    supervisor.communicate(timeout=60)
    pid = int(str(attempts(tmp_path)[0][0]))
    deadline = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("code", "phase", "expected"),
    [
        (0, "train", False),
        (2, "train", False),
        (2, "cluster_lost", True),
        (1, "train", True),
        (-signal.SIGKILL, "train", True),
        (-signal.SIGSEGV, "train", True),
        (-signal.SIGTERM, "train", False),
        (130, "train", False),
        (143, "train", False),
    ],
)
def test_which_ends_are_worth_another_attempt(code: int, phase: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"phase": phase}))
    assert is_worth_another(code, run_folder=tmp_path) is expected


def test_before_the_first_checkpoint_the_run_begins_anew_in_a_new_folder(tmp_path: Path) -> None:
    first = first_attempt(["a.yaml", "run.seed=1"], resume=None, run=make_run(tmp_path))
    first.run_folder.mkdir()
    second = next_attempt(first, inputs=["a.yaml", "run.seed=1"], resume=None, run=make_run(tmp_path))
    assert second.arguments == ("a.yaml", "run.seed=1", "run.name=run-2")
    assert second.run_folder == tmp_path / "run-2"


def test_a_resumed_run_keeps_its_overrides_and_forgets_the_update_it_was_resumed_from(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "update_000003").mkdir(parents=True)
    inputs, resume = ["run.num_updates=9"], f"{tmp_path}@2"
    first = first_attempt(inputs, resume=resume, run=make_run(tmp_path))
    assert first.arguments == ("run.num_updates=9", "--resume", resume)
    second = next_attempt(first, inputs=inputs, resume=resume, run=make_run(tmp_path))
    assert second.arguments == ("run.num_updates=9", "--resume", str(tmp_path))
    assert os.path.isdir(second.run_folder)
