"""Does a Python program pass its tests? Runs in a sandbox child; the program runs in an interpreter of its own.

Tests are text in JSON, as the task `code` writes them:
    {"setup": code, "asserts": code}            run behind the program, in its namespace
    {"stdio": [[input, output], ...]}           one run each: what it prints when it reads `input`

Too slow, too large or broken programs are wrong and not invalid, because limits are a part of such problems.
The program inherits the child's address space limit and may write no files.
"""

import ctypes
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from actors.sandbox import code_runner
from actors.sandbox.code_runner import BROKEN_SETUP, FAILED_ASSERT, OUT_OF_MEMORY, RIGHT, UNPARSEABLE

MAX_OUTPUT_BYTES = 1_048_576
_RELATIVE_TOLERANCE = 1e-6
_RUNNER = str(Path(code_runner.__file__))
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_REASON_OF_EXIT = {
    BROKEN_SETUP: "unparseable_reference",
    FAILED_ASSERT: "wrong",
    OUT_OF_MEMORY: "memory_limit",
    UNPARSEABLE: "unparseable",
    -signal.SIGXCPU: "time_limit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    reason: str  # "" when the program ran to its end
    output: bytes


def check_code(program: str, tests: str, time_limit_seconds: str) -> tuple[str, float, str]:
    """Verdict on a program; `time_limit_seconds` is for all its tests together.

    Returns:
        ("ok", 1.0, "right"), or ("ok", 0.0, reason) with the reason of the first test that fails: "wrong",
        "runtime_error", "time_limit", "memory_limit", "output_limit", "unparseable"; or ("invalid", 0.0,
        "unparseable_reference") when `tests` are none, or their setup does not run.
    """
    try:
        reference = json.loads(tests)
        cases = reference.get("stdio") or [["", None]]
        setup, asserts = reference.get("setup", ""), reference.get("asserts")
        is_usable = bool(reference.get("stdio") or asserts) and all(len(case) == 2 for case in cases)
    except (ValueError, AttributeError, TypeError):
        is_usable = False
    if not is_usable:
        return "invalid", 0.0, "unparseable_reference"
    deadline = time.monotonic() + float(time_limit_seconds)
    for given, expected in cases:
        run = _run(program, setup=setup, asserts=asserts, given=given, deadline=deadline)
        if run.reason:
            return ("invalid" if run.reason == "unparseable_reference" else "ok"), 0.0, run.reason
        if expected is not None and not is_same_output(run.output.decode("utf-8", errors="replace"), expected):
            return "ok", 0.0, "wrong"
    return "ok", 1.0, "right"


def is_same_output(given: str, expected: str) -> bool:
    """The same words in the same order; words that are no integers may differ as numbers by 1e-6 of their size."""
    given_words, expected_words = given.split(), expected.split()
    return len(given_words) == len(expected_words) and all(map(_is_same_word, given_words, expected_words))


def _is_same_word(given: str, expected: str) -> bool:
    if given == expected:
        return True
    if expected.lstrip("+-").isdigit():
        return False
    try:
        number, reference = float(given), float(expected)
    except ValueError:
        return False
    return abs(number - reference) <= _RELATIVE_TOLERANCE * max(1.0, abs(reference))


def _run(program: str, *, setup: str, asserts: str | None, given: str, deadline: float) -> _Run:
    """One run in a fresh interpreter, over by `deadline`; nothing of it is left behind."""
    nonce = secrets.token_hex(16)
    request = json.dumps({"program": program, "setup": setup, "asserts": asserts, "nonce": nonce}).encode("ascii")
    with ExitStack() as pipes:
        request_reader, request_writer = (pipes.enter_context(end) for end in _open_pipe())
        answer_reader, answer_writer = (pipes.enter_context(end) for end in _open_pipe())
        process = subprocess.Popen(
            # -I: no environment, no user site; third-party packages of the environment stay importable
            (sys.executable, "-I", "-B", _RUNNER, str(request_reader.fileno()), str(answer_writer.fileno())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pass_fds=(request_reader.fileno(), answer_writer.fileno()),
            cwd="/",
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            preexec_fn=_die_with_parent,  # safe here: a sandbox child has one thread
        )
        assert process.stdin is not None
        assert process.stdout is not None
        pipes.callback(_end, process)
        request_reader.close()
        answer_writer.close()
        unsent = {request_writer: memoryview(request), process.stdin: memoryview(given.encode("utf-8"))}
        output, is_over = _talk(unsent, output_pipe=process.stdout, deadline=deadline)
        reason = _failure(process, is_over=is_over, deadline=deadline)
        if len(output) > MAX_OUTPUT_BYTES:
            reason = "output_limit"
        elif not reason and answer_reader.read(64).decode("ascii", errors="replace") != nonce:
            reason = "runtime_error"  # it left before its end
    return _Run(reason=reason, output=output)


def _open_pipe() -> tuple[IO[bytes], IO[bytes]]:
    reader, writer = os.pipe()
    return os.fdopen(reader, "rb", buffering=0), os.fdopen(writer, "wb", buffering=0)


def _talk(unsent: dict[IO[bytes], memoryview], *, output_pipe: IO[bytes], deadline: float) -> tuple[bytes, bool]:
    """Feed the pipes of `unsent`, collect the output; false when the deadline or the output limit came first."""
    poller, output = select.poll(), bytearray()
    poller.register(output_pipe, select.POLLIN)
    pipe_of = {pipe.fileno(): pipe for pipe in unsent}
    for descriptor in pipe_of:
        os.set_blocking(descriptor, False)
        poller.register(descriptor, select.POLLOUT)
    while len(output) <= MAX_OUTPUT_BYTES:
        seconds_left = deadline - time.monotonic()
        if seconds_left <= 0:
            break
        for descriptor, _ in poller.poll(seconds_left * 1000 + 1):
            if descriptor == output_pipe.fileno():
                data = os.read(descriptor, 65_536)
                if not data:
                    return bytes(output), True
                output += data
                continue
            pipe = pipe_of[descriptor]
            unsent[pipe] = _send(descriptor, unsent[pipe])
            if not unsent[pipe]:
                poller.unregister(descriptor)
                pipe.close()
    return bytes(output), False


def _send(descriptor: int, data: memoryview) -> memoryview:
    """What could not be written yet; nothing when the reader is gone."""
    try:
        return data[os.write(descriptor, data) :] if data else data
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return data[:0]


def _failure(process: "subprocess.Popen[bytes]", *, is_over: bool, deadline: float) -> str:
    """Why a run failed; "" when it did not. A program may have closed its output and still run."""
    if not is_over:
        return "time_limit"
    try:
        code = process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "time_limit"
    return "" if code == RIGHT else _REASON_OF_EXIT.get(code, "runtime_error")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the program with all that it started in its session, and reap it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
