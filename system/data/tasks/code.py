"""Programming problems whose answer is a Python program that passes tests: contests, MBPP, HumanEval.

| rows with | are read as |
|---|---|
| `test_list` (and `test_setup_code`) | MBPP: statements that must hold behind the program |
| `test` and `entry_point` | HumanEval: a function to complete and its `check` |
| `public_tests`, `private_tests`, `generated_tests`, `official_tests`, `examples` or `tests` | a contest: what the |
| | program prints when it reads an input (Codeforces, CodeContests) |

Tests of a contest are `{"input": [...], "output": [...]}` or a list of `{"input": ..., "output": ...}`. Problems that
read files, talk to a judge, or accept several answers (a checker belongs to them) are left out.
"""

import ast
import json
import re
from collections.abc import Iterator, Sequence

from system.data.tasks.rows import Row, text_field
from system.data.tasks.text_task import ParsedRow, TextTask
from system.interfaces import AnswerKind

MAX_TESTS = 20  # of a contest, in the order of TEST_FIELDS
MAX_TESTS_CHARACTERS = 24_000  # they travel with every completion to the verifier
TEST_FIELDS = ("public_tests", "examples", "tests", "official_tests", "private_tests", "generated_tests")
_FENCE = re.compile(r"[ \t]*```[ \t]*([A-Za-z0-9+]*)")
_PYTHON = {"", "python", "python3", "py"}


class CodeTask(TextTask):
    name = "code"
    answer_kind: AnswerKind = "code"
    instruction = "Reason step by step, then give the complete Python program in one block that starts with ```python."
    expected_row = (
        f"a problem text and tests: 'test_list', 'test' with 'entry_point', or one of {', '.join(TEST_FIELDS)}"
    )

    def left_out_because(self, row: Row) -> str:
        """Contest problems that words of output cannot judge, or whose tests are all too long."""
        if not _is_contest(row):
            return ""
        is_by_file = row.get("input_mode") == "file" or any(row.get(field) for field in ("input_file", "output_file"))
        if is_by_file or any(row.get(field) for field in ("generated_checker", "interaction_format")):
            return "that the printed output cannot judge, left out"
        return "" if _contest_tests(row) else "whose tests are too long, left out"

    def parse_row(self, row: Row) -> ParsedRow | None:
        if isinstance(row.get("test_list"), list):
            return _parse_mbpp(row)
        if "test" in row and "entry_point" in row:
            return _parse_human_eval(row)
        return _parse_contest(row) if _is_contest(row) else None

    def extract_answer(self, response: str) -> str | None:
        """The last closed block that is marked as Python or not marked at all; a marked fence opens a new one."""
        program: str | None = None
        language, body = None, [""]  # of the open block; no language: outside of all
        for line in response.split("\n"):
            fence = _FENCE.match(line)
            if fence is None:
                body.append(line)
            elif language is None or fence[1]:
                language, body = fence[1].lower(), []
            else:
                program = "\n".join(body) if language in _PYTHON else program
                language = None
        return (program.strip("\n") or None) if program is not None else None


def _parse_mbpp(row: Row) -> ParsedRow | None:
    question, program = text_field(row, ["text", "prompt"]), _code_field(row, "code")
    tests = row["test_list"]
    if question is None or not isinstance(tests, list) or not all(isinstance(test, str) for test in tests) or not tests:
        return None
    asserts, after = "\n".join(tests), _code_field(row, "test_setup_code")
    return ParsedRow(
        question=f"{question}\nThe program must satisfy these tests:\n\n{asserts}",
        solution=_block(program),
        reference_answer=_asserts(asserts, after=after, names=_names_of(program, after=after, used_by=asserts)),
    )


def _parse_human_eval(row: Row) -> ParsedRow | None:
    prompt, tests, name = _code_field(row, "prompt"), _code_field(row, "test"), text_field(row, ["entry_point"])
    if not prompt or not tests or name is None:
        return None
    return ParsedRow(
        question=f"Complete this function; repeat it as a whole, with its imports.\n\n{_block(prompt.rstrip())}",
        solution=_block(prompt + _code_field(row, "canonical_solution")),
        # the prompt runs first: its imports and helpers are known to a program that does not repeat them
        reference_answer=_asserts(f"{tests}\ncheck({name})\n", setup=prompt, names=[name]),
    )


def _parse_contest(row: Row) -> ParsedRow | None:
    parts = [text_field(row, ["description", "question", "problem"])]
    parts += [text_field(row, [field]) for field in ("input_format", "output_format")]
    if parts[0] is None:
        return None
    statement = "\n\n".join(part for part in parts if part is not None)
    return ParsedRow(
        question=f"{statement}\n\nThe program reads standard input and prints to standard output.",
        solution="",
        reference_answer=json.dumps({"stdio": _contest_tests(row)}),
    )


def _is_contest(row: Row) -> bool:
    return any(row.get(field) for field in TEST_FIELDS)


def _contest_tests(row: Row) -> list[tuple[str, str]]:
    """The first tests of the row, as many as the limits allow; longer ones are passed over."""
    chosen: list[tuple[str, str]] = []
    room = MAX_TESTS_CHARACTERS
    for given, expected in _all_contest_tests(row):
        size = len(json.dumps((given, expected)))
        if size <= room and len(chosen) < MAX_TESTS:
            chosen.append((given, expected))
            room -= size
    return chosen


def _all_contest_tests(row: Row) -> Iterator[tuple[str, str]]:
    for field in TEST_FIELDS:
        tests = row.get(field)
        if isinstance(tests, dict):
            pairs = list(zip(tests.get("input", ()), tests.get("output", ()), strict=False))
        elif isinstance(tests, list):
            pairs = [(test.get("input"), test.get("output")) for test in tests if isinstance(test, dict)]
        else:
            continue
        yield from ((given, out) for given, out in pairs if isinstance(given, str) and isinstance(out, str))


def _code_field(row: Row, name: str) -> str:
    """A field with code as it stands, "" when there is none; indentation and blank lines matter."""
    value = row.get(name)
    return value.replace("\r\n", "\n") if isinstance(value, str) else ""


def _asserts(code: str, *, names: Sequence[str], setup: str = "", after: str = "") -> str:
    return json.dumps({"setup": setup, "after": after, "asserts": code, "names": list(names)})


def _names_of(program: str, *, after: str, used_by: str) -> list[str]:
    """What the asserts use of the program and of the code behind it; the asserts themselves never meet the program.

    Empty where the program cannot be read: then it is every name that nobody else defines.
    """
    try:
        defined = {
            name
            for node in ast.parse(program + "\n" + after).body
            for name in (
                [node.name]
                if isinstance(node, ast.FunctionDef | ast.ClassDef)
                else [
                    part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
                ]
            )
        }
        used = {node.id for node in ast.walk(ast.parse(used_by)) if isinstance(node, ast.Name)}
    except (SyntaxError, ValueError):
        return []
    return sorted(defined & used)


def _block(code: str) -> str:
    return f"```python\n{code}\n```"
