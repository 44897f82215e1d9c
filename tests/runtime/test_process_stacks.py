"""Stacks of real processes that are titled as Ray titles its actors: running, stopped, and without py-spy."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from system.runtime.process_stacks import by_signal, catches_signal, find_actors, stack_of, stacks_of_actors
from system.stack_signal import STACK_SIGNAL

ROOT = Path(__file__).parents[2]
PROGRAM = """
import subprocess, sys, time
from system.stack_signal import catch_stack_signal

def wait_in_a_verifier():
    catch_stack_signal()
    print("ready", flush=True)
    while True:
        time.sleep(0.01)

wait_in_a_verifier()
"""


@pytest.fixture
def actor(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A child process with the title of a reward worker; its standard error is a file, as Ray's are."""
    with ExitStack() as stack:
        error = stack.enter_context((tmp_path / "err").open("w"))
        process = stack.enter_context(
            subprocess.Popen(
                ["ray::RewardWorker.score", "-c", PROGRAM], executable=sys.executable, cwd=ROOT,
                stdout=subprocess.PIPE, stderr=error, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        )  # fmt: skip
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", (tmp_path / "err").read_text()
        yield process


def test_the_actors_of_a_class_are_found_by_their_title(actor: "subprocess.Popen[str]") -> None:
    assert [each.pid for each in find_actors(os.getpid(), ["RewardWorker"])] == [actor.pid]
    assert find_actors(os.getpid(), ["RolloutWorker"]) == []
    text = stacks_of_actors(os.getpid(), ["RolloutWorker"], seconds=1.0)
    assert text == "no process of RolloutWorker runs here"


def test_a_stopped_process_shows_where_it_was(actor: "subprocess.Popen[str]") -> None:
    actor.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while psutil.Process(actor.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.01)
    text = stacks_of_actors(os.getpid(), ["RewardWorker"], seconds=60.0)
    assert f"process {actor.pid} (ray::RewardWorker.score" in text
    assert "): stopped, child of " in text
    assert "wait_in_a_verifier" in text
    actor.send_signal(signal.SIGCONT)


def test_a_process_writes_its_own_stacks_on_the_signal(actor: "subprocess.Popen[str]") -> None:
    text = by_signal(actor.pid, seconds=60.0)
    assert "wait_in_a_verifier" in text
    assert actor.poll() is None


def test_a_process_that_would_die_of_the_signal_does_not_get_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        try:
            assert by_signal(process.pid) == "no stack by signal: the process does not catch SIGUSR2"
            assert process.poll() is None
        finally:
            process.kill()


def test_the_mask_of_caught_signals_is_read() -> None:
    assert STACK_SIGNAL == 12
    assert catches_signal("Name:\tpython\nSigCgt:\t0000000100004802\n")
    assert not catches_signal("SigCgt:\t00000001000044fa\n")
    assert not catches_signal("")


def test_a_process_that_is_gone_is_said_to_be(actor: "subprocess.Popen[str]") -> None:
    process = psutil.Process(actor.pid)
    actor.kill()
    actor.wait()
    assert "NoSuchProcess" in stack_of(process)
