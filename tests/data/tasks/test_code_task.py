"""Programming problems: the three kinds of rows, which tests of a contest are kept, and which program is taken."""

import json
from pathlib import Path

import pytest

from system.data.tasks.code import MAX_TESTS, MAX_TESTS_CHARACTERS, CodeTask
from system.errors import ConfigError
from system.records import Problem


def load_rows(tmp_path: Path, *rows: object) -> list[Problem]:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return CodeTask(test_path=str(path)).load("test")


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("so\n```python\nprint(1)\n```\ndone", "print(1)"),
        ("```\nprint(1)\n```", "print(1)"),
        ("```python\nprint(1)\n```\nbetter:\n```py\nprint(2)\n```", "print(2)"),
        ("```python\nprint(1)\n```\nwhich prints\n```text\n1\n```", "print(1)"),
        ("  ```python\n  print(1)\n  ```", "  print(1)"),
        ("```python\nprint('```')\n```", "print('```')"),
        ("```python\nprint(1)", None),
        ("```python\n```", None),
        ("print(1)", None),
    ],
)
def test_the_program_is_the_last_closed_python_block(response: str, program: str | None) -> None:
    assert CodeTask().extract_answer(response) == program


def test_megabyte_of_open_blocks_is_read_at_once() -> None:
    assert CodeTask().extract_answer("```python\n" * 100_000) is None


def test_mbpp_row(tmp_path: Path) -> None:
    row = {"text": "Square it.", "code": "def f(x):\r\n  return x * x", "test_setup_code": "import math",
           "test_list": ["assert f(2) == 4", "assert f(3) == 9"]}  # fmt: skip
    (problem,) = load_rows(tmp_path, row)
    assert problem.question.startswith("Square it.")
    assert problem.question.endswith("assert f(2) == 4\nassert f(3) == 9")
    assert json.loads(problem.reference_answer) == {
        "setup": "",
        "after": "import math",
        "asserts": "assert f(2) == 4\nassert f(3) == 9",
        "names": ["f"],
    }
    assert CodeTask().extract_answer(problem.solution) == "def f(x):\n  return x * x"


def test_human_eval_row(tmp_path: Path) -> None:
    prompt = 'import math\n\ndef f(x):\n    """Square."""\n'
    row = {"prompt": prompt, "entry_point": "f", "canonical_solution": "    return x * x\n",
           "test": "def check(candidate):\n    assert candidate(2) == 4\n"}  # fmt: skip
    (problem,) = load_rows(tmp_path, row)
    assert f"```python\n{prompt.rstrip()}\n```" in problem.question
    reference = json.loads(problem.reference_answer)
    assert reference["setup"] == prompt
    assert reference["asserts"].endswith("assert candidate(2) == 4\n\ncheck(f)\n")
    assert CodeTask().extract_answer(problem.solution) == prompt + "    return x * x"


@pytest.mark.parametrize(
    "tests",
    [
        {"public_tests": {"input": ["1 2"], "output": ["3"]}, "private_tests": {"input": ["5 6"], "output": ["11"]}},
        {"examples": [{"input": "1 2", "output": "3"}], "official_tests": [{"input": "5 6", "output": "11"}]},
    ],
)
def test_contest_row_takes_public_tests_first(tmp_path: Path, tests: dict[str, object]) -> None:
    (problem,) = load_rows(tmp_path, {"description": "Add.", "input_format": "Two numbers.", **tests})
    assert problem.question.startswith("Add.\n\nTwo numbers.\n\n")
    assert json.loads(problem.reference_answer) == {"stdio": [["1 2", "3"], ["5 6", "11"]]}


def test_tests_of_a_contest_are_bounded_in_number_and_length(tmp_path: Path) -> None:
    inputs = ["x" * MAX_TESTS_CHARACTERS, *(str(number) for number in range(2 * MAX_TESTS))]
    row = {"description": "Echo.", "tests": [{"input": text, "output": text} for text in inputs]}
    (problem,) = load_rows(tmp_path, row)
    kept = json.loads(problem.reference_answer)["stdio"]
    assert kept == [[str(number), str(number)] for number in range(MAX_TESTS)]


def test_contest_rows_that_output_alone_cannot_judge_are_left_out(tmp_path: Path) -> None:
    long = "x" * MAX_TESTS_CHARACTERS
    good = {"description": "Echo.", "tests": [{"input": "1", "output": "1"}]}
    too_long = {"description": "Long.", "tests": [{"input": long, "output": long}]}
    others = [
        {**good, "input_file": "in.txt"},
        {**good, "input_mode": "file"},
        {**good, "generated_checker": "def check(): ..."},
        {**good, "interaction_format": "Ask the judge."},
    ]
    problems = load_rows(tmp_path, too_long, good, *others)
    assert [problem.problem_id for problem in problems] == ["test/00001"]


@pytest.mark.parametrize(
    "row",
    [
        {"text": "no tests"},
        {"text": "empty", "test_list": []},
        {"text": "numbers", "test_list": [1]},
        {"entry_point": "f", "test": "x"},
        {"tests": [{"input": "1", "output": "1"}]},
    ],
)
def test_row_without_what_it_needs_is_refused(tmp_path: Path, row: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"task\.test_path: given .*row 1', expected a problem text and tests"):
        load_rows(tmp_path, row)
