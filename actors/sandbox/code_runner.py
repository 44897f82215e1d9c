"""The process of one program that a model wrote: runs it, and calls its functions as it is told. Started by program.py.

    argv:  file descriptors of two pipes, for requests and for replies; the limit on computing time in seconds
    in:    first {"program": ..., "setup": ..., "after": ..., "is_served": ...}: the program, code before and behind it
           then, where it is served, {"get": name}, {"call": number, "arguments": ..., "names": ...}, {"list": number}
    out:   ["value", plain value] or ["raised", name of the exception's type]; none where it is only run
    exit:  one of the codes below; any other means that the program raised, or killed its process

Nothing here decides anything: what the program is expected to give never comes here. An audit hook refuses what no
solution needs (processes, sockets, changes to files), which keeps honest mistakes from doing harm; the walls are those
of confinement.py and of the limits.
"""

import json
import math
import os
import resource
import signal
import struct
import sys
from itertools import islice
from pathlib import Path
from typing import BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from actors.sandbox.confinement import confine
from actors.sandbox.plain_values import NotPlainError, decode, encode

RAN, RAISED, UNPARSEABLE, OUT_OF_MEMORY, BROKEN_SETUP = 0, 1, 3, 5, 6
MAX_MESSAGE_BYTES = 4_194_304
MAX_ITEMS = 100_000
_FORBIDDEN = (
    "socket.", "subprocess.", "shutil.", "pty.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system",
    "os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link", "os.symlink",
    "os.truncate",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class ForbiddenError(BaseException):
    """Not an Exception, so that a program's `except Exception` does not hide it."""


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event.startswith(_FORBIDDEN):
        raise ForbiddenError(event)
    if event == "open":
        _, mode, flags = arguments
        is_writing = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        if is_writing or (isinstance(flags, int) and flags & _WRITING):
            raise ForbiddenError("open for writing")


def _run(request: dict[str, str], *, names: dict[str, object]) -> int:
    try:
        code = compile(request["program"], "program", "exec")
    except (SyntaxError, ValueError, RecursionError):  # ValueError: a null byte
        return UNPARSEABLE
    try:
        exec(request["setup"], names)
    except Exception:  # noqa: BLE001 (data of the task that does not run says nothing about the program)
        return BROKEN_SETUP
    try:
        exec(code, names)
        exec(request["after"], names)
    except SystemExit as end:
        if end.code not in (None, 0):
            return RAISED
    sys.stdout.flush()
    return RAN


class _Server:
    """Answers requests about the program's names; objects that are no plain values are kept here by number."""

    def __init__(self, names: dict[str, object]) -> None:
        self._names = names
        self._kept: list[object] = []

    def answer(self, request: dict[str, object]) -> list[object]:
        try:
            return ["value", encode(self._value(request), refer=self._refer)]
        except (NotPlainError, MemoryError, RecursionError) as error:
            return ["raised", type(error).__name__]
        except BaseException as error:  # noqa: BLE001 (whatever untrusted code raises)
            return ["raised", next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")]

    def _value(self, request: dict[str, object]) -> object:
        if "get" in request:
            return self._names[str(request["get"])]
        if "list" in request:
            return list(islice(iter(self._resolve(request["list"])), MAX_ITEMS))  # type: ignore[call-overload]
        arguments, named = (decode(request[part], resolve=self._resolve) for part in ("arguments", "names"))
        function = self._resolve(request["call"])
        if not (isinstance(arguments, list) and isinstance(named, dict) and callable(function)):
            raise TypeError("no call")
        return function(*arguments, **named)

    def _refer(self, value: object) -> int:
        self._kept.append(value)
        return len(self._kept) - 1

    def _resolve(self, number: object) -> object:
        assert isinstance(number, int)
        return self._kept[number]


def _read(pipe: BinaryIO) -> dict[str, object] | None:
    header = pipe.read(4)
    if len(header) < 4:
        return None
    message: dict[str, object] = json.loads(pipe.read(struct.unpack(">I", header)[0]))
    return message


def _write(pipe: BinaryIO, message: list[object]) -> None:
    payload = json.dumps(message).encode("ascii")
    if len(payload) > MAX_MESSAGE_BYTES:
        payload = json.dumps(["raised", "OverflowError"]).encode("ascii")
    pipe.write(struct.pack(">I", len(payload)) + payload)
    pipe.flush()


def main() -> None:
    requests, replies = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb")
    seconds = float(sys.argv[3])
    first = _read(requests)
    assert first is not None
    is_served = bool(first.pop("is_served"))
    whole_seconds = math.ceil(seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (whole_seconds, whole_seconds + 1))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    confine()
    sys.argv, sys.path[:1] = [""], []
    sys.addaudithook(_refuse)
    names: dict[str, object] = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        code = _run({name: str(text) for name, text in first.items()}, names=names)
    except MemoryError:
        code = OUT_OF_MEMORY
    except BaseException:  # noqa: BLE001 (whatever untrusted code raises)
        code = RAISED
    if is_served and code == RAN:
        server = _Server(names)
        _write(replies, ["value", None])
        while (request := _read(requests)) is not None:
            _write(replies, server.answer(request))
    os._exit(code)  # without exit handlers and threads of the program


if __name__ == "__main__":
    main()
