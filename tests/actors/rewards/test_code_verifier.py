"""Programs through the real verifier: what is right, what is wrong and why, and that nothing is left behind."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors.rewards.answer_verifier import AnswerVerifier
from actors.rewards.answers import MAX_PROGRAM_CHARACTERS
from actors.rewards.code_check import is_same_output
from system.data.tasks.code import CodeTask
from tests.actors.rewards.answer_tasks import HashTask, group_of

DATA = Path(__file__).parents[3] / ".." / "shared" / "data"
SQUARE = json.dumps({"setup": "import math", "asserts": "assert f(2) == 4\nassert f(3) == 9"})
ADD = json.dumps({"stdio": [["1 2\n", "3\n"], ["5 6", "11"]]})


@pytest.fixture(scope="module")
def verifier() -> Iterator[AnswerVerifier]:
    verifier = AnswerVerifier(HashTask("code"), num_processes=2, timeout_seconds=5.0, memory_limit_mib=1024)
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    ("program", "tests", "value", "reason"),
    [
        ("def f(x): return x * x", SQUARE, 1.0, "right"),
        ("def f(x): return int(math.pow(x, 2))", SQUARE, 1.0, "right"),
        ("def f(x): return 2 * x", SQUARE, 0.0, "wrong"),
        ("def f(x): return 1 / 0", SQUARE, 0.0, "runtime_error"),
        ("def f(x): return f(x)", SQUARE, 0.0, "runtime_error"),
        ("def g(x): return x * x", SQUARE, 0.0, "runtime_error"),
        ("def f(x: return x", SQUARE, 0.0, "unparseable"),
        ("\0", SQUARE, 0.0, "unparseable"),
        ("(" * 5000, SQUARE, 0.0, "unparseable"),
        ("x = bytearray(1 << 40)", SQUARE, 0.0, "memory_limit"),
        ("a, b = map(int, input().split())\nprint(a + b)", ADD, 1.0, "right"),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit(0)", ADD, 1.0, "right"),
        ("print(3)", ADD, 0.0, "wrong"),
        ("print(3)\nraise SystemExit(1)", ADD, 0.0, "runtime_error"),
        ("while True: print('x' * 10000)", ADD, 0.0, "output_limit"),
        ("import sys\nsys.stdout.buffer.write(bytes([255, 254]))", ADD, 0.0, "wrong"),
    ],
)
def test_verdicts(verifier: AnswerVerifier, program: str, tests: str, value: float, reason: str) -> None:
    (term,) = verifier.score(group_of([f"#{program}"], reference=tests))
    assert (term.status, term.value, term.reason) == ("ok", value, reason)


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "import os\nos.write(4, b'0' * 32)\nos._exit(0)",
        "import os, signal\nsignal.raise_signal(signal.SIGKILL)",
        "import os\nif os.fork(): os._exit(0)",
        "import subprocess\nsubprocess.run(['true'])",
        "import socket\nsocket.socket()",
        "open('/tmp/credence-test-of-a-program', 'w')",
        "import os\nos.remove('/etc/hostname')",
    ],
)
def test_programs_that_leave_early_or_reach_outside_do_not_pass(verifier: AnswerVerifier, program: str) -> None:
    (term,) = verifier.score(group_of([f"#{program}\ndef f(x): return x * x"], reference=SQUARE))
    assert (term.status, term.value, term.reason) == ("ok", 0.0, "runtime_error")


def test_programs_that_never_end_are_wrong_in_time_and_leave_no_process() -> None:
    verifier = AnswerVerifier(HashTask("code"), num_processes=2, timeout_seconds=1.0, memory_limit_mib=512)
    programs = ["while True: pass", "import os, time\nos.close(1)\ntime.sleep(60)", "def f(x): return x * x"]
    start = time.monotonic()
    terms = verifier.score(group_of([f"#{program}" for program in programs], reference=SQUARE))
    assert [term.reason for term in terms] == ["time_limit", "time_limit", "right"]
    assert time.monotonic() - start < 10
    sandbox_children = psutil.Process().children()
    assert not [each for child in sandbox_children for each in child.children()]
    verifier.close()


def test_program_dies_with_a_verifier_that_is_killed() -> None:
    verifier = AnswerVerifier(HashTask("code"), num_processes=1, timeout_seconds=60.0, memory_limit_mib=512)
    sandbox = verifier._sandbox
    (child_id,) = sandbox.process_ids
    running: list[psutil.Process] = []

    def kill_when_it_runs() -> None:
        deadline = time.monotonic() + 30
        while not running and time.monotonic() < deadline:
            running.extend(psutil.Process(child_id).children())
            time.sleep(0.05)
        time.sleep(0.2)  # past the start of the interpreter
        psutil.Process(child_id).kill()

    killer = threading.Thread(target=kill_when_it_runs)
    killer.start()
    try:
        sandbox.run([("while True: pass", SQUARE, "1.0")])
    finally:
        killer.join()
        verifier.close()
    gone, alive = psutil.wait_procs(running, timeout=5)
    assert gone
    assert not alive


def test_tests_that_are_none_or_do_not_run_are_invalid(verifier: AnswerVerifier) -> None:
    broken_setup = json.dumps({"setup": "import no_such_module", "asserts": "assert True"})
    for reference in ("{}", "[1", "7", broken_setup):
        (term,) = verifier.score(group_of(["#x = 1"], reference=reference))
        assert (term.status, term.reason) == ("invalid", "unparseable_reference")


def test_longest_program_is_judged_and_a_longer_one_is_not_tried(verifier: AnswerVerifier) -> None:
    longest = "def f(x): return x * x".ljust(MAX_PROGRAM_CHARACTERS)
    right, too_long = verifier.score(group_of([f"#{longest}", f"#{longest} "], reference=SQUARE))
    assert (right.reason, too_long.reason) == ("right", "answer_too_long")


@pytest.mark.parametrize(
    ("given", "expected", "is_same"),
    [
        ("1 2\n3", "1\n2 3\n", True),
        ("0.3333333", "0.33333333", True),
        ("0.3334", "0.33333333", False),
        ("3.0", "3", False),
        ("1e9", "1000000000.0", True),
        ("nan", "1.5", False),
        ("1", "1 1", False),
        ("yes", "Yes", False),
    ],
)
def test_outputs_are_compared_word_by_word(given: str, expected: str, is_same: bool) -> None:
    assert is_same_output(given, expected) is is_same


@pytest.mark.skipif(not DATA.exists(), reason="the public data sets are not beside the repository")
@pytest.mark.parametrize(("file", "num_problems"), [("humaneval/HumanEval.jsonl", 164), ("mbpp/mbpp.jsonl", 50)])
def test_published_solutions_pass_and_their_neighbours_fail(file: str, num_problems: int) -> None:
    task = CodeTask(test_path=str(DATA / file))
    problems = task.load("test")[:num_problems]
    verifier = AnswerVerifier(task, num_processes=2, timeout_seconds=20.0, memory_limit_mib=1024)
    for problem, neighbour in zip(problems, [*problems[1:], problems[0]], strict=True):
        responses = [problem.solution, neighbour.solution]
        own, other = verifier.score(group_of(responses, reference=problem.reference_answer))
        assert (own.reason, other.value) == ("right", 0.0), problem.question
    verifier.close()
