"""Does a Python program pass its tests? Decided here, in a sandbox child, on plain values; the program runs elsewhere.

Tests are text in JSON, as the task `code` writes them:
    {"setup": code, "after": code, "asserts": code, "names": [...]}   `names` are those of the program; `setup` runs
                                                                      before the program and `after` behind it
    {"stdio": [[input, output], ...]}                                 what it prints when it reads `input`, in one run

    asserts, expected values          here       `f(2) == 4`: f stands for the program's f
      | f, (2,)        ^ 4                       arguments and results travel as plain values: an object that claims to
      v                |                         equal everything arrives as what it is, or equals nothing
    program                           a process of its own, started without the tests, which cannot read this one

Too slow, too large or broken programs are wrong and not invalid, because limits are a part of such problems.
"""

import ast
import builtins
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType

from actors.sandbox.plain_values import NotPlainError, decode, encode
from actors.sandbox.program import ProgramEndedError, ProgramProcess

_RELATIVE_TOLERANCE = 1e-6


class UndecidableError(Exception):
    """The tests need what cannot be told to another process, such as a function of their own as an argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTests:
    setup: str
    after: str
    asserts: str | None
    names: tuple[str, ...]  # of the program, which the asserts use
    stdio: tuple[tuple[str, str], ...]


def check_code(program: str, tests: str, time_limit_seconds: str) -> tuple[str, float, str]:
    """Verdict on a program; `time_limit_seconds` of computing time are for all its tests together.

    Returns:
        ("ok", 1.0, "right"), or ("ok", 0.0, reason) with the reason of the first test that fails: "wrong",
        "runtime_error", "time_limit", "memory_limit", "output_limit", "unparseable"; or ("invalid", 0.0,
        "unparseable_reference") when `tests` are none, do not run, or cannot be decided from outside.
    """
    reference = _read_tests(tests)
    if reference is None:
        return "invalid", 0.0, "unparseable_reference"
    seconds = float(time_limit_seconds)
    try:
        if reference.asserts is not None:
            is_right = _holds(program, reference, asserts=reference.asserts, seconds=seconds)
        else:
            is_right = _prints(program, reference, seconds=seconds)
    except ProgramEndedError as end:
        reason = str(end.args[0])
        return ("invalid" if reason == "unparseable_reference" else "ok"), 0.0, reason
    except UndecidableError:
        return "invalid", 0.0, "unparseable_reference"
    return ("ok", 1.0, "right") if is_right else ("ok", 0.0, "wrong")


def _read_tests(text: str) -> CodeTests | None:
    try:
        fields = json.loads(text)
        asserts = fields.get("asserts")
        tests = CodeTests(
            setup=str(fields.get("setup", "")),
            after=str(fields.get("after", "")),
            asserts=None if not asserts else str(asserts),
            names=tuple(map(str, fields.get("names", ()))),
            stdio=tuple((str(given), str(expected)) for given, expected in fields.get("stdio", ())),
        )
    except (ValueError, AttributeError, TypeError):
        return None
    return tests if tests.asserts or tests.stdio else None


def _prints(program: str, tests: CodeTests, *, seconds: float) -> bool:
    for given, expected in tests.stdio:
        if seconds <= 0:
            raise ProgramEndedError("time_limit")
        with ProgramProcess(
            program, setup=tests.setup, after="", seconds=seconds, is_served=False, given=given
        ) as process:
            output = process.run()
            seconds -= process.end()
        if not is_same_output(output.decode("utf-8", errors="replace"), expected):
            return False
    return True


def _holds(program: str, tests: CodeTests, *, asserts: str, seconds: float) -> bool:
    """Whether the asserts, which are data of the task and run here, hold for what the program's functions give."""
    code, names = _compiled(asserts, setup=tests.setup)
    with ProgramProcess(program, setup=tests.setup, after=tests.after, seconds=seconds, is_served=True) as process:
        remote = _Remote(process)
        remote.start()
        try:
            for name in tests.names or _free_names(asserts, known=names):
                names[name] = remote.ask({"get": name})
            exec(code, names)
        except AssertionError:
            return False
        except (ProgramEndedError, UndecidableError):
            raise
        # What the program raised, or what the asserts raise on what it gave.
        except Exception as error:
            raise ProgramEndedError("runtime_error") from error
        if process.end() > seconds:
            raise ProgramEndedError("time_limit")
    return True


def _compiled(asserts: str, *, setup: str) -> tuple[CodeType, dict[str, object]]:
    """The asserts, and the names that they find beside the program's. Raises ProgramEndedError for broken data."""
    names: dict[str, object] = {"__name__": "tests"}
    try:
        code = compile(asserts, "tests", "exec")
        exec(setup, names)
    # Data of the task that does not run says nothing about the program.
    except Exception as error:
        raise ProgramEndedError("unparseable_reference") from error
    for module in _free_names(asserts, known=names):
        if module in sys.stdlib_module_names:
            names[module] = importlib.import_module(module)
    return code, names


def _free_names(code: str, *, known: dict[str, object]) -> Iterator[str]:
    """Names that the code reads and nobody here defines: they are the program's."""
    tree = ast.walk(ast.parse(code))
    used = [node for node in tree if isinstance(node, ast.Name)]
    defined = {node.id for node in used if isinstance(node.ctx, ast.Store)} | set(known) | set(dir(builtins))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
    yield from dict.fromkeys(node.id for node in used if node.id not in defined)


class _Remote:
    """The program's functions and objects, as the asserts see them."""

    def __init__(self, process: ProgramProcess) -> None:
        self._process = process

    def start(self) -> None:
        self._process.ask(None)

    def ask(self, request: dict[str, object]) -> object:
        """The plain value, or a `RemoteObject`. Raises what the program raised, as far as Python has it."""
        kind, content = self._process.ask(request)
        if kind == "raised":
            error = getattr(builtins, str(content), None)
            if isinstance(error, type) and issubclass(error, Exception):
                raise error("raised by the program")
            raise ProgramEndedError("runtime_error")
        try:
            return decode(content, resolve=lambda number: RemoteObject(self, number))
        except NotPlainError as error:
            raise ProgramEndedError("runtime_error") from error

    def call(self, number: int, arguments: tuple[object, ...], named: dict[str, object]) -> object:
        try:
            sent = {"arguments": encode(list(arguments), refer=_number_of), "names": encode(named, refer=_number_of)}
        except NotPlainError as error:
            raise UndecidableError from error
        return self.ask({"call": number, **sent})


class RemoteObject:
    """Something of the program that is no plain value: it can be called, listed and handed back, and equals nothing."""

    __slots__ = ("_remote", "number")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, remote: _Remote, number: int) -> None:
        self._remote = remote
        self.number = number

    def __call__(self, *arguments: object, **named: object) -> object:
        return self._remote.call(self.number, arguments, named)

    def __iter__(self) -> Iterator[object]:
        items = self._remote.ask({"list": self.number})
        if not isinstance(items, list):
            raise ProgramEndedError("runtime_error")
        return iter(items)

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        raise ProgramEndedError("wrong")

    def __bool__(self) -> bool:
        raise ProgramEndedError("wrong")


def _number_of(value: object) -> int:
    if type(value) is RemoteObject:
        return value.number
    raise NotPlainError(type(value).__name__)


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
