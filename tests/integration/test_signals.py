"""Ctrl-C and SIGTERM in the middle of everything: out within 20 s, nothing left running, the last checkpoint loads."""

import signal
import time
from pathlib import Path

import psutil
import pytest
from credence_process import (
    alive,
    command,
    require_success,
    resume_command,
    run,
    started,
    summary,
    wait_for_phase,
)

from benchmarks.run_processes import family_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
EXIT_SECONDS = 20.0


def stop_in_phase(directory: Path, phase: str, *, number: signal.Signals) -> list[psutil.Process]:
    """Start a run, send the signal in the middle of `phase` after its first checkpoint, wait for the exit."""
    arguments = command(directory, run__num_updates=1000, checkpoint__every_updates=1, evaluation__every_updates="null")
    with started(arguments, log=directory / "log") as process:
        wait_for_phase(directory / "small", phase, process=process, at_least=2)
        family = family_of(process.pid)
        assert len(family) > 4
        sent = time.monotonic()
        process.send_signal(number)
        code = process.wait(60)
        seconds = time.monotonic() - sent
    assert code == 128 + number, (directory / "log").read_text()[-5000:]
    assert seconds < EXIT_SECONDS
    return family


@pytest.mark.parametrize(
    ("phase", "number"),
    [("rollout", signal.SIGINT), ("train", signal.SIGTERM), ("checkpoint", signal.SIGTERM)],
)
def test_signal_leaves_no_process_and_a_checkpoint_that_loads(
    phase: str, number: signal.Signals, tmp_path: Path
) -> None:
    family = stop_in_phase(tmp_path, phase, number=number)

    assert alive(family) == []
    checkpoints = sorted(path.name for path in (tmp_path / "small" / "checkpoints").iterdir())
    assert checkpoints, "no checkpoint is left"
    assert not any(name.endswith(".partial") for name in checkpoints)
    if phase == "checkpoint":  # one resume is enough to show that what is left loads and trains on
        done = int(checkpoints[-1].removeprefix("update_"))
        require_success(run([*resume_command(tmp_path / "small"), f"run.num_updates={done + 1}"]))
        assert summary(tmp_path / "small")["num_updates"] == done + 1


def test_signal_while_the_actors_start_leaves_no_process(tmp_path: Path) -> None:
    with started(command(tmp_path), log=tmp_path / "log") as process:
        wait_for_phase(tmp_path / "small", "start", process=process)
        time.sleep(5.0)
        family = family_of(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(EXIT_SECONDS) == 128 + signal.SIGTERM

    assert alive(family) == []
