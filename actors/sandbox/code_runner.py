"""Runs one program that a model wrote, in an interpreter of its own. Started by code_check.py; nobody imports it.

    argv:  file descriptor of a pipe that holds the request, file descriptor for the answer
    in:    {"program": ..., "setup": ..., "asserts": ...}   JSON; `asserts` null: the program is judged by its output
    out:   the nonce of the request, when everything ran to its end
    exit:  one of the codes below; any other means that the program raised, or killed its process

An audit hook refuses what no solution needs: processes, sockets, changes to files. It keeps honest mistakes from doing
harm and makes cheating laborious; it is no wall against a program written to break out.
"""

import json
import os
import sys

RIGHT, RAISED, UNPARSEABLE, FAILED_ASSERT, OUT_OF_MEMORY, BROKEN_SETUP = 0, 1, 3, 4, 5, 6
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


def _run(program: str, *, setup: str, asserts: str | None) -> int:
    names: dict[str, object] = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        code = compile(program, "program", "exec")
    except (SyntaxError, ValueError, RecursionError):  # ValueError: a null byte
        return UNPARSEABLE
    try:
        exec(setup, names)
    except Exception:  # noqa: BLE001 (data of the task that does not run says nothing about the program)
        return BROKEN_SETUP
    try:
        exec(code, names)
    except SystemExit as end:
        if end.code not in (None, 0):
            return RAISED
    if asserts is not None:
        try:
            exec(asserts, names)
        except AssertionError:
            return FAILED_ASSERT
        except SystemExit:
            return RAISED  # the tests did not run to their end
    sys.stdout.flush()
    return RIGHT


def main() -> None:
    request_fd, answer_fd = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(request_fd, "rb") as pipe:
        request = json.loads(pipe.read())
    sys.argv = [""]
    sys.addaudithook(_refuse)
    try:
        code = _run(request["program"], setup=request["setup"], asserts=request["asserts"])
    except MemoryError:
        code = OUT_OF_MEMORY
    except BaseException:  # noqa: BLE001 (whatever untrusted code raises)
        code = RAISED
    if code == RIGHT:
        os.write(answer_fd, request["nonce"].encode("ascii"))
    os._exit(code)  # without exit handlers and threads of the program


if __name__ == "__main__":
    main()
