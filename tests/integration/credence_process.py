"""Starts `credence train` as a user does, in a process of its own, and looks at what it leaves."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.run_processes import kill_family

ROOT = Path(__file__).parents[2]
# a run of a minute: everything real, everything small
SMALL = {
    "run.num_updates": 4,
    "run.max_seconds": "null",
    "batch.prompts_per_step": 8,
    "batch.completions_per_prompt": 4,
    "batch.tokens_per_microbatch": 1024,
    "evaluation.num_problems": 16,
    "evaluation.num_problems_final": 16,
    "evaluation.completions_per_problem_final": 2,
    "evaluation.every_updates": 2,
    "checkpoint.every_updates": 2,
    "tracker.wandb_mode": "offline",
}
TIMEOUT_SECONDS = 240


def small_keys(directory: Path, *, name: str) -> dict[str, object]:
    """The keys of a small demo run."""
    return SMALL | {"run.directory": directory, "run.name": name}


def command(directory: Path, *, name: str = "small", **overrides: object) -> list[str]:
    """The command line of a small demo run; in `overrides` a double underscore stands for the dot of a key."""
    keys = small_keys(directory, name=name) | {key.replace("__", "."): value for key, value in overrides.items()}
    return [
        *(sys.executable, "-m", "system", "train", "configs/demo.yaml"),
        *(f"{key}={value}" for key, value in keys.items()),
    ]


def resume_command(run_folder: Path | str) -> list[str]:
    return [sys.executable, "-m", "system", "train", "--resume", str(run_folder)]


def run(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run to the end; the output of a run that failed is in the assertion's message."""
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


def require_success(completed: "subprocess.CompletedProcess[str]") -> None:
    assert completed.returncode == 0, f"{completed.stdout[-3000:]}\n{completed.stderr[-6000:]}"


@contextmanager
def started(arguments: list[str], *, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A run in the background; what is left of it afterwards is killed, so that a failed test leaves nothing."""
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            kill_family(process)


def alive(processes: list[psutil.Process]) -> list[str]:
    """Which of these still run (zombies have ended)."""
    names = []
    for process in processes:
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                names.append(" ".join(process.cmdline())[:120] or process.name())
        except psutil.NoSuchProcess:
            continue
    return names


def wait_for_phase(run_folder: Path, phase: str, *, process: "subprocess.Popen[bytes]", at_least: int = 0) -> None:
    """Returns as soon as status.json names the phase at policy version `at_least` or later."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the run ended before phase {phase}"
        status = _status(run_folder)
        if status.get("phase") == phase and status["policy_version"] >= at_least:
            return
        time.sleep(0.002)
    raise AssertionError(f"phase {phase} did not come within {TIMEOUT_SECONDS} s")


def wait_for_file(path: Path, *, process: "subprocess.Popen[bytes]") -> None:
    """Returns as soon as there is such a file or folder; a checkpoint has its name once it is whole."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if path.exists():
            return
        assert process.poll() is None, f"the run ended before there was {path.name}"
        time.sleep(0.002)
    raise AssertionError(f"{path.name} did not come within {TIMEOUT_SECONDS} s")


def metric_lines(run_folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [{"policy_version": line["policy_version"], "metrics": line["metrics"]} for line in lines]


def summary(run_folder: Path) -> dict[str, Any]:
    return json.loads((run_folder / "summary.json").read_text())


def _status(run_folder: Path) -> dict[str, Any]:
    try:
        return json.loads((run_folder / "status.json").read_text())
    except FileNotFoundError:
        return {}


def environment() -> dict[str, str]:
    """That of a user who tracks offline."""
    return {**os.environ, "WANDB_MODE": "offline", "PYTHONUNBUFFERED": "1"}
