"""`credence train --retries N`: the driver in a child process, started again from its last checkpoint when it dies.

| the child                                             | then                                                    |
|-------------------------------------------------------|---------------------------------------------------------|
| ends well, is stopped by SIGINT or SIGTERM            | its exit code is ours                                   |
| ends in one line that a user can act on (exit code 2) | the same                                                |
| loses Ray (exit code 2 and the phase in status.json)  | again, with --resume                                    |
| is killed, crashes, runs out of memory                | again, with --resume                                    |

Before the first checkpoint the run begins anew, in a new folder. What the child leaves behind comes to this process and
is ended before the next attempt. When this process dies, the child gets SIGTERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from system.config.load import split_resume
from system.config.machine import free_run_folder
from system.config.schema import RunConfig
from system.runtime.checkpoint import CheckpointStore
from system.runtime.process_family import children_of, kill
from system.runtime.run_phases import CLUSTER_LOST_PHASE

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_STOPPED = (0, 128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What to start, and the folder that it writes to."""

    arguments: tuple[str, ...]
    run_folder: Path


def first_attempt(inputs: Sequence[str], *, resume: str | None, run: RunConfig) -> Attempt:
    """`inputs`: configuration files and overrides. A new run is told its folder, so that we know it as well."""
    if resume is not None:
        folder = Path(split_resume(resume)[0]).resolve()
        return Attempt(arguments=(*inputs, "--resume", resume), run_folder=folder)
    folder = free_run_folder(run)
    return Attempt(arguments=(*inputs, f"run.name={folder.name}"), run_folder=folder)


def next_attempt(former: Attempt, *, inputs: Sequence[str], resume: str | None, run: RunConfig) -> Attempt:
    """From the newest checkpoint; all over again where there is none."""
    if not CheckpointStore(former.run_folder, keep=1).complete():
        return first_attempt(inputs, resume=None, run=run)
    overrides = inputs if resume is not None else ()  # the folder of a new run has its whole configuration
    return Attempt(arguments=(*overrides, "--resume", str(former.run_folder)), run_folder=former.run_folder)


def is_worth_another(code: int, *, run_folder: Path) -> bool:
    """Whether a child that ended with `code` (negative: by that signal) may go on better the next time."""
    if code in _STOPPED:
        return False
    return code != 2 or _phase(run_folder) == CLUSTER_LOST_PHASE


def train_with_retries(
    inputs: Sequence[str],
    *,
    resume: str | None,
    run: RunConfig,
    retries: int,
    command: Sequence[str] = (sys.executable, "-m", "system", "train"),
    orphan_seconds: float = 5.0,
) -> int:
    """Run to the end, with at most `retries` more attempts; the exit code of the last one.

    `orphan_seconds`: for Ray's processes to notice by themselves that their driver is gone.
    """
    _adopt_orphans()
    attempt = first_attempt(inputs, resume=resume, run=run)
    for number in range(1, retries + 2):
        code, was_stopped = _run([*command, *attempt.arguments])
        _end_orphans(seconds=orphan_seconds)
        if was_stopped or number > retries or not is_worth_another(code, run_folder=attempt.run_folder):
            break
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        attempt = next_attempt(attempt, inputs=inputs, resume=resume, run=run)
        text = f"credence: the run ended by {how}; attempt {number + 1} of at most {retries + 1}: credence train "
        print(text + " ".join(attempt.arguments), file=sys.stderr, flush=True)
    return code if code >= 0 else 128 - code


def _run(command: Sequence[str]) -> tuple[int, bool]:
    """The exit code of the child, and whether we were told to stop; signals are handed on to it."""
    was_stopped = False

    def hand_on(number: int, frame: object) -> None:
        nonlocal was_stopped
        was_stopped = True
        process.send_signal(number)

    # a process group of its own: Ctrl-C reaches it once, through us
    process = subprocess.Popen(command, process_group=0, preexec_fn=_end_with_parent())
    former = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait(), was_stopped
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _phase(run_folder: Path) -> str | None:
    try:
        phase: str = json.loads((run_folder / "status.json").read_text())["phase"]
    except (OSError, ValueError, KeyError):
        return None
    return phase


def _prctl() -> Callable[[int, int], int] | None:
    """None where there is none: not on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    return lambda option, value: int(library.prctl(option, value, 0, 0, 0))


def _end_with_parent() -> Callable[[], None] | None:
    prctl = _prctl()
    return None if prctl is None else lambda: (prctl(_PR_SET_PDEATHSIG, signal.SIGTERM), None)[1]


def _adopt_orphans() -> None:
    """Processes whose parent dies become our children, so that none is overlooked."""
    prctl = _prctl()
    if prctl is not None:
        prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end_orphans(*, seconds: float) -> None:
    """Wait until what the child left has ended, and kill what has not by then."""
    deadline = time.monotonic() + seconds
    while (children := children_of(os.getpid())) and time.monotonic() < deadline + seconds:
        if time.monotonic() > deadline:
            kill(children)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.05)
