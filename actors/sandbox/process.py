"""The parent's end of one sandbox child: start, send a batch, receive replies, kill. Used by `sandbox.py` only."""

import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.sandbox.child import OUT_OF_MEMORY_EXIT_CODE, READY
from actors.sandbox.idle_clock import IdleClock
from system.errors import CredenceError
from system.records import RewardStatus

_SOURCE_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package `actors`
_MAX_REPLY_BYTES = 65_536
# Nothing else is passed on: a child that works on a model's text needs no credentials, and Ray's own
# variables would only slow its start.
_KEPT_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "TMPDIR",
    "VIRTUAL_ENV",
)


class SandboxStartError(CredenceError):
    """A verifier process did not start: a missing library, or a memory limit too small to import it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildReply:
    item: int
    status: RewardStatus
    value: float
    reason: str
    seconds: float
    is_fit: bool  # false: the child asks to be replaced


def encode_request(request: Sequence[str]) -> bytes:
    """ASCII JSON; lone surrogates and control characters travel as escapes."""
    return json.dumps(list(request)).encode("ascii")


class SandboxProcess:
    """One child. `items` are those it has not answered, in order; the first is the one it works on."""

    def __init__(
        self, check: str, *, timeout_seconds: float, memory_limit_mib: int, start_timeout_seconds: float
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._start_timeout_seconds = start_timeout_seconds
        self._received = bytearray()
        self._is_malformed = False
        # A file, not a pipe: nobody has to empty it while the child starts.
        self._start_messages = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        # Read by the child as arguments: the check, its limits, and who its parent is.
        arguments = (check, str(memory_limit_mib), repr(timeout_seconds), str(os.getpid()))
        self._process = subprocess.Popen(
            (sys.executable, "-m", "actors.sandbox.child", *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._start_messages,
            bufsize=0,
            cwd=_SOURCE_ROOT,
            env=_child_environment(),
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._request_pipe, self._response_pipe = self._process.stdin, self._process.stdout
        self._request_fd = self._request_pipe.fileno()
        self.response_fd = self._response_pipe.fileno()
        os.set_blocking(self._request_fd, False)
        os.set_blocking(self.response_fd, False)
        self.process_id = self._process.pid
        self.items: deque[int] = deque()
        self.is_ready = False
        self.num_checks = 0
        self._start_clock()
        self.deadline = self.check_started + start_timeout_seconds

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Raises SandboxStartError when the child does not get ready in time."""
        poller = select.poll()
        poller.register(self.response_fd, select.POLLIN)
        while not self.is_ready:
            poller.poll(self._milliseconds_left())
            self.receive()

    def submit(self, items: Sequence[int], *, payloads: Sequence[bytes]) -> None:
        """Send a batch to an idle child. One that is dead or does not read shows in `receive` or by its deadline."""
        self.items.extend(items)
        self._start_clock()
        body = b"[" + b",".join(payloads) + b"]"
        unsent = memoryview(struct.pack(">I", len(body)) + body)
        poller = select.poll()
        poller.register(self._request_fd, select.POLLOUT)
        while unsent and poller.poll(self._milliseconds_left()):
            try:
                unsent = unsent[os.write(self._request_fd, unsent) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return
        if not unsent:
            self._start_clock()

    def receive(self) -> tuple[list[ChildReply], str | None]:
        """All replies that have come, and why the child ended ("memory", "timeout", "crash"; None: it lives on).

        Does not wait. Raises SandboxStartError when the child ended, or was too slow, before it was ready.
        """
        is_at_end = self._read_available()
        replies = self._decode_replies()
        if not self.is_ready and (is_at_end or time.monotonic() >= self.deadline):
            raise self._start_error()
        if self._is_malformed:
            return replies, "crash"
        return replies, self._death_reason() if is_at_end else None

    def kill(self) -> None:
        """SIGKILL, reap, close the pipes. No grace: a child holds nothing worth saving."""
        self._process.kill()
        self._process.wait()
        self._request_pipe.close()
        self._response_pipe.close()
        self._start_messages.close()

    def _milliseconds_left(self) -> int:
        return max(0, math.ceil((self.deadline - time.monotonic()) * 1000))

    def is_hanging(self) -> bool:
        """Whether a check past its deadline does not compute; one that only waits for a processor gets more time."""
        self.deadline = self._clock.next_deadline()
        return time.monotonic() >= self.deadline

    def _start_clock(self) -> None:
        self.check_started = time.monotonic()
        self._clock = IdleClock(self.process_id, limit_seconds=self._timeout_seconds)
        self.deadline = self.check_started + self._timeout_seconds

    def _read_available(self) -> bool:
        """Move what the pipe holds to the buffer; true at end of file."""
        while True:
            try:
                data = os.read(self.response_fd, 65_536)
            except BlockingIOError:
                return False
            if not data:
                return True
            self._received += data

    def _decode_replies(self) -> list[ChildReply]:
        replies: list[ChildReply] = []
        while len(self._received) >= 4 and not self._is_malformed:
            (length,) = struct.unpack_from(">I", self._received)
            if length <= _MAX_REPLY_BYTES and len(self._received) < 4 + length:
                break
            payload = bytes(self._received[4 : 4 + min(length, _MAX_REPLY_BYTES)])
            del self._received[: 4 + len(payload)]
            if not self.is_ready and payload == READY:
                self.is_ready = True
                continue
            reply = _decode_reply(payload, item=self.items[0]) if self.items else None
            if reply is None:
                self._is_malformed = True
                break
            replies.append(reply)
            self.items.popleft()
            self.num_checks += 1
            self._start_clock()
        return replies

    def _death_reason(self) -> str:
        exit_code = self._wait_for_exit()
        if exit_code == OUT_OF_MEMORY_EXIT_CODE:
            return "memory"
        return "timeout" if exit_code in (-signal.SIGPROF, -signal.SIGXCPU) else "crash"

    def _wait_for_exit(self) -> int | None:
        """Exit code of a child that has closed its pipe: it is dead or about to be."""
        try:
            return self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return None

    def _start_error(self) -> SandboxStartError:
        is_late = time.monotonic() >= self.deadline
        what = f"within {self._start_timeout_seconds:g} s" if is_late else f"(exit code {self._wait_for_exit()})"
        self._start_messages.seek(0)
        lines = self._start_messages.read().decode("utf-8", errors="replace").strip().splitlines()
        last_words = lines[-1] if lines else "it printed nothing"
        return SandboxStartError(f"verifier process {self.process_id} did not start {what}: {last_words}")


def _child_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    # sympy orders terms by hash: the same answer must get the same verdict in every child and every run.
    return kept | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}


def _decode_reply(payload: bytes, *, item: int) -> ChildReply | None:
    """None for anything but a well-formed reply: the child's memory may be damaged."""
    try:
        status, value, reason, seconds, is_fit = json.loads(payload)
        if status not in ("ok", "invalid") or not math.isfinite(value) or not isinstance(reason, str):
            return None
        return ChildReply(
            item=item, status=status, value=float(value), reason=reason, seconds=float(seconds), is_fit=bool(is_fit)
        )
    except (ValueError, TypeError):
        return None
