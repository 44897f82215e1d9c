"""The child process of a sandbox: reads batches of requests, runs one check function, answers each request.

Started by `sandbox.py` as `python -m actors.sandbox.child`; nobody imports it. It loads the standard
library and the check function's module, nothing else, because its start is on the path of every replacement.

Wire format, both ways: 4 bytes big-endian length, then that many bytes of ASCII JSON.
    in:   [[argument, ...], ...]                                   one batch
    out:  "ready" once, then for each request, as soon as it is decided:
          [status, value, reason, seconds, is_fit]                 is_fit false: the child has ended, replace it
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

CheckResult = tuple[str, float, str]  # status, value, reason
Check = Callable[..., CheckResult]

OUT_OF_MEMORY_EXIT_CODE = 77
READY = b'"ready"'
_MIB = 1024 * 1024
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    check_name, memory_limit_mib, timeout_seconds, parent_pid = arguments
    memory_limit = int(memory_limit_mib) * _MIB
    requests, responses = _take_over_pipes()
    _die_with_parent(int(parent_pid))
    # Before the imports, so that a limit too small for them shows at start and not as failing checks.
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    check = _load(check_name)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    memory = _MemoryWatch(memory_limit=memory_limit)
    _write(responses, READY)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # parsers complain on stderr about every bad answer
    try:
        while (batch := _read(requests)) is not None:
            for request in batch:
                reply = _run_check(check, request, timeout_seconds=float(timeout_seconds), memory=memory)
                _write(responses, json.dumps(reply).encode("ascii"))
                if not reply[-1]:
                    os._exit(0)
    except MemoryError:
        os._exit(OUT_OF_MEMORY_EXIT_CODE)
    except BrokenPipeError:
        os._exit(0)  # the parent is gone


def _run_check(
    check: Check, request: list[str], *, timeout_seconds: float, memory: "_MemoryWatch"
) -> tuple[str, float, str, float, bool]:
    # Computing time, not wall clock: the verdict is the same on a busy machine. SIGPROF ends C code too.
    signal.setitimer(signal.ITIMER_PROF, timeout_seconds)
    start = time.monotonic()
    try:
        status, value, reason = check(*request)
    except MemoryError:
        return "invalid", 0.0, "memory", time.monotonic() - start, False
    seconds = time.monotonic() - start
    memory.measure()
    if memory.is_near_limit and value == 0.0:
        return "invalid", 0.0, "memory", seconds, False
    return status, value, reason, seconds, not memory.is_grown


class _MemoryWatch:
    """Tells whether a verdict of zero may come from a MemoryError that a library has swallowed.

    math-verify and sympy catch `Exception`, MemoryError included, and go on as if the expressions differed.
    An allocation that fails is preceded by others that succeeded (big integers grow by doubling), so a check
    that took more than a third of the room above the idle process is not believed. A process that has slowly
    grown by half of that asks to be replaced, so that only a single check's appetite can cross the line.
    """

    def __init__(self, *, memory_limit: int) -> None:
        self._status_file = os.open("/proc/self/status", os.O_RDONLY)
        self._peak = self._idle_peak = self._read_peak()
        self._room = memory_limit - self._idle_peak

    def measure(self) -> None:
        self._peak = self._read_peak()

    @property
    def is_near_limit(self) -> bool:
        return self._peak > self._idle_peak + self._room / 3

    @property
    def is_grown(self) -> bool:
        return self._peak > self._idle_peak + self._room / 6

    def _read_peak(self) -> int:
        """Peak address space in bytes."""
        status = os.pread(self._status_file, 4096, 0)
        _, _, rest = status.partition(b"VmPeak:")
        return int(rest.split(None, 1)[0]) * 1024


def _take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Private copies of stdin and stdout; what a library prints or reads goes to /dev/null."""
    requests = os.fdopen(os.dup(0), "rb")
    responses = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return requests, responses


def _die_with_parent(parent_pid: int) -> None:
    # A terminal's Ctrl-C reaches the whole process group; the parent decides what happens to its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before prctl took effect
        os._exit(0)


def _load(check_name: str) -> Check:
    module_name, _, function_name = check_name.partition(":")
    check: Check = getattr(importlib.import_module(module_name), function_name)
    return check


def _read(stream: BinaryIO) -> list[list[str]] | None:
    """The next batch, or None when the parent has closed the pipe."""
    header = stream.read(4)
    if len(header) < 4:
        return None
    (length,) = struct.unpack(">I", header)
    payload = stream.read(length)
    if len(payload) < length:
        return None
    batch: list[list[str]] = json.loads(payload)
    return batch


def _write(stream: BinaryIO, payload: bytes) -> None:
    stream.write(struct.pack(">I", len(payload)) + payload)
    stream.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
