"""The stacks of other processes on this machine, as text: by py-spy, else by the signal of system/stack_signal.py.

Used by stack_dump.py, on the controller's node directly and on the others in a Ray task.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from system.stack_signal import STACK_SIGNAL

_SPY_SECONDS = 10.0
_SIGNAL_SECONDS = 2.0
_TITLE = "ray::"


def stacks_of_actors(root: int, actors: Sequence[str], *, seconds: float) -> str:
    """The stacks of the actors of these classes among the descendants of process `root`, and of their own children.

    What is not done within `seconds` is named and left out.
    """
    deadline = time.monotonic() + seconds
    processes = find_actors(root, actors)
    texts = [] if processes else [f"no process of {', '.join(actors)} runs here"]
    for process in processes:
        if time.monotonic() > deadline:
            texts.append(f"{describe(process)}\nleft out: {seconds:g} s are over")
        else:
            texts.append(stack_of(process))
    return "\n\n".join(texts)


def find_actors(root: int, actors: Sequence[str]) -> list[psutil.Process]:
    """Processes of the actors, each followed by its own descendants (engine cores, verifier children)."""
    titles = tuple(_TITLE + actor for actor in actors)
    found: dict[int, psutil.Process] = {}
    try:
        family = psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in family:
        try:
            is_actor = process.cmdline()[:1] and process.cmdline()[0].startswith(titles)
            own = [process, *process.children(recursive=True)] if is_actor else []
        except psutil.Error:
            continue  # it has just ended
        found |= {each.pid: each for each in own}
    return list(found.values())


def stack_of(process: psutil.Process) -> str:
    """What the process does, thread by thread; or why that cannot be seen. Never raises for one that is gone."""
    head = describe(process)
    for way in (by_spy, by_signal):
        text = way(process.pid)
        if text.startswith(_FAILED):
            head += f"\n{text}"
        else:
            return f"{head}\n{text.strip()}"
    return head


_FAILED = "no stack "


def describe(process: psutil.Process) -> str:
    """One line: number, title, state, parent, memory, and in which call of the kernel it waits."""
    try:
        with process.oneshot():
            title = " ".join(" ".join(process.cmdline()).split())[:200] or process.name()
            memory = process.memory_info().rss / 2**20
            line = f"process {process.pid} ({title}): {process.status()}, child of {process.ppid()}, {memory:.0f} MiB"
    except psutil.Error as error:
        return f"process {process.pid}: {type(error).__name__}"
    waits_in = _read(Path(f"/proc/{process.pid}/wchan"))
    return line + (f", in kernel call {waits_in}" if waits_in not in ("", "0") else "")


def by_spy(pid: int) -> str:
    """py-spy's view, without stopping the process: it also works on one that is stopped."""
    beside = Path(sys.executable).with_name("py-spy")
    spy = str(beside) if beside.is_file() else shutil.which("py-spy")
    if spy is None:
        return f"{_FAILED}by py-spy: it is not installed"
    command = [spy, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SPY_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{_FAILED}by py-spy: {error}"
    if done.returncode != 0:
        return f"{_FAILED}by py-spy: {' '.join(done.stderr.split())[:300]}"
    return done.stdout


def by_signal(pid: int, *, seconds: float = _SIGNAL_SECONDS, kill: Callable[[int, int], None] | None = None) -> str:
    """What the process itself writes to its standard error, where that is a file and it catches the signal."""
    if not catches_signal(_read(Path(f"/proc/{pid}/status"))):
        return f"{_FAILED}by signal: the process does not catch {STACK_SIGNAL.name}"
    try:
        path = Path(os.readlink(f"/proc/{pid}/fd/2"))
        start = path.stat().st_size
        (kill or os.kill)(pid, STACK_SIGNAL)
    except OSError as error:
        return f"{_FAILED}by signal: {error}"
    text, deadline = "", time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.1)
        longer = _read(path, start=start)
        if longer and longer == text:
            return text
        text = longer
    return text or f"{_FAILED}by signal: nothing came within {seconds:g} s"


def catches_signal(status: str) -> bool:
    """Whether a process catches STACK_SIGNAL, by its /proc/PID/status."""
    for line in status.splitlines():
        name, _, mask = line.partition(":")
        if name == "SigCgt":
            return bool(int(mask, 16) >> (STACK_SIGNAL - 1) & 1)
    return False


def _read(path: Path, *, start: int = 0) -> str:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
