"""The judge's end of one program's process: start, feed, ask and end it. Used by code_check.py in a sandbox child."""

import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from actors.sandbox import code_runner
from actors.sandbox.code_runner import BROKEN_SETUP, MAX_MESSAGE_BYTES, OUT_OF_MEMORY, RAN, UNPARSEABLE
from actors.sandbox.confinement import hide_memory
from actors.sandbox.idle_clock import IdleClock
from actors.sandbox.parent_death import die_with_parent

MAX_OUTPUT_BYTES = 1_048_576
_RUNNER = str(Path(code_runner.__file__))
_REASON_OF_EXIT = {
    RAN: "",
    BROKEN_SETUP: "unparseable_reference",
    OUT_OF_MEMORY: "memory_limit",
    UNPARSEABLE: "unparseable",
    -signal.SIGXCPU: "time_limit",
    -signal.SIGPROF: "time_limit",
}


class ProgramEndedError(Exception):
    """The program's process ended, hung, or sent nonsense; `args[0]` is the reason of the verdict."""


class ProgramProcess:
    """One program in a fresh interpreter that has `seconds` of computing time; leaving the context ends it.

    With `is_served` it stays and answers `ask`; otherwise it reads `given` and `run` collects what it prints. The
    process starts without what it is expected to give, and cannot read the memory of this one.
    """

    def __init__(
        self, program: str, *, setup: str, after: str, seconds: float, is_served: bool, given: str = ""
    ) -> None:
        hide_memory()
        self._seconds = seconds
        request_read, self._request_fd = os.pipe()
        self._reply_fd, reply_write = os.pipe()
        pipe = subprocess.DEVNULL if is_served else subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                # -I: no environment, no user site; third-party packages of the environment stay importable
                (sys.executable, "-I", "-B", _RUNNER, str(request_read), str(reply_write), repr(seconds)),
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                pass_fds=(request_read, reply_write),
                cwd="/",
                env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=die_with_parent,  # safe here: a sandbox child has one thread
            )
        finally:
            os.close(request_read)
            os.close(reply_write)
        self._clock = IdleClock(self._process.pid, limit_seconds=seconds)
        self._deadline = time.monotonic() + seconds
        self._used: float | None = None
        os.set_blocking(self._request_fd, False)
        first = {"program": program, "setup": setup, "after": after, "is_served": is_served}
        self._unsent = {self._request_fd: memoryview(_framed(first))}
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)
            self._unsent[self._process.stdin.fileno()] = memoryview(given.encode("utf-8", "surrogatepass"))

    def __enter__(self) -> "ProgramProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
        for descriptor in (self._request_fd, self._reply_fd):
            os.close(descriptor)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def run(self) -> bytes:
        """What the program prints until it ends. Raises ProgramEndedError when it does not end well."""
        assert self._process.stdout is not None
        output = bytearray()
        while data := self._receive(self._process.stdout.fileno()):
            output += data
            if len(output) > MAX_OUTPUT_BYTES:
                raise ProgramEndedError("output_limit")
        raise_for = self._reason()
        if raise_for:
            raise ProgramEndedError(raise_for)
        return bytes(output)

    def ask(self, request: dict[str, object] | None) -> tuple[str, object]:
        """("value" or "raised", content): the answer to a request (None: to the first). Raises ProgramEndedError."""
        if request is not None:
            self._unsent[self._request_fd] = memoryview(_framed(request))
        header = self._receive_exactly(4)
        (length,) = struct.unpack(">I", header)
        if length > MAX_MESSAGE_BYTES:
            raise ProgramEndedError("output_limit")
        try:
            reply = json.loads(self._receive_exactly(length))
        except (ValueError, RecursionError) as error:
            raise ProgramEndedError("runtime_error") from error
        if not isinstance(reply, list) or len(reply) != 2 or reply[0] not in ("value", "raised"):
            raise ProgramEndedError("runtime_error")
        return reply[0], reply[1]

    def end(self) -> float:
        """Kill the program with all that it started in its session; the computing seconds it has used."""
        if self._used is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._reap(block=True)
        assert self._used is not None
        return self._used

    def _receive_exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            more = self._receive(self._reply_fd, length - len(data))
            if not more:
                raise ProgramEndedError(self._reason() or "runtime_error")
            data += more
        return bytes(data)

    def _receive(self, descriptor: int, length: int = 65_536) -> bytes:
        """What comes next, b"" at the end; meanwhile feeds the program. Raises ProgramEndedError when it hangs."""
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        for pipe in self._unsent:
            poller.register(pipe, select.POLLOUT)
        while True:
            ready = poller.poll(max(0, math.ceil((self._deadline - time.monotonic()) * 1000)))
            if not ready:
                self._extend()
            for pipe, _ in ready:
                if pipe == descriptor:
                    return os.read(descriptor, length)
                self._unsent[pipe] = _send(pipe, self._unsent[pipe])
                if not self._unsent[pipe]:
                    poller.unregister(pipe)
                    del self._unsent[pipe]
                    if self._process.stdin is not None and pipe == self._process.stdin.fileno():
                        self._process.stdin.close()
                        self._process.stdin = None

    def _extend(self) -> None:
        """More wall clock for a program that waits for a processor. Raises ProgramEndedError for one that hangs."""
        self._deadline = self._clock.next_deadline()
        if time.monotonic() >= self._deadline:
            raise ProgramEndedError("time_limit")

    def _reason(self) -> str:
        """Why a program that has closed its pipe ended, "" for a good end; it may still run."""
        while not self._reap(block=False):
            if time.monotonic() >= self._deadline:
                self._extend()
            time.sleep(0.002)
        if self.end() > self._seconds:
            return "time_limit"
        assert self._process.returncode is not None
        return _REASON_OF_EXIT.get(self._process.returncode, "runtime_error")

    def _reap(self, *, block: bool) -> bool:
        if self._used is not None:
            return True
        process_id, status, usage = os.wait4(self._process.pid, 0 if block else os.WNOHANG)
        if process_id == 0:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._used = usage.ru_utime + usage.ru_stime
        with suppress(ProcessLookupError):  # what it left behind in its session
            os.killpg(self._process.pid, signal.SIGKILL)
        return True


def _framed(message: dict[str, object]) -> bytes:
    payload = json.dumps(message).encode("ascii")
    return struct.pack(">I", len(payload)) + payload


def _send(descriptor: int, data: memoryview) -> memoryview:
    """What could not be written yet; nothing when the reader is gone."""
    try:
        return data[os.write(descriptor, data) :] if data else data
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return data[:0]
