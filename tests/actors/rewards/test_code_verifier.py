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


EXPECTED = 918_273_645
ATTACKED = json.dumps({"asserts": f"assert f(2) == {EXPECTED}\nassert f(3) == {EXPECTED} + 1", "names": ["f"]})
ATTACKED_OUTPUT = json.dumps({"stdio": [["2", str(EXPECTED)]]})
# Looks for the expected number with what precedes it in the tests; finds nothing of its own program's text.
SEARCH = """
import ctypes, gc, os, re, sys
PATTERN = re.compile(b"(?:== |, .)(9182736[0-9]{2})")
def search(data):
    found = PATTERN.search(data)
    return int(found[1]) if found else None
def read_memory(process):
    try:
        maps = open(f"/proc/{process}/maps").read()
        memory = open(f"/proc/{process}/mem", "rb", 0)
    except OSError:
        return None
    for line in maps.splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if "rw" in line and end - start < 1 << 28:
            try:
                memory.seek(start)
                found = search(memory.read(end - start))
            except OSError:
                continue
            if found:
                return found
"""
ATTACKS = {
    "an object that equals everything": (
        "class Any:\n  __eq__ = lambda *a: True\n  __ne__ = lambda *a: False\n  __hash__ = None\ndef f(x): return Any()"
    ),
    "a number that equals everything": "class N(int):\n  __eq__ = lambda *a: True\ndef f(x): return N(0)",
    "a list that equals everything": "class L(list):\n  __eq__ = lambda *a: True\ndef f(x): return L()",
    "a type that equals everything": (
        "class M(type):\n  __eq__ = lambda *a: True\n  __hash__ = type.__hash__\nclass T(metaclass=M): pass\n"
        "def f(x): return T"
    ),
    "the frames of its callers": SEARCH
    + """
def f(x):
    frame = sys._getframe()
    while frame is not None:
        for value in (*frame.f_locals.values(), *frame.f_globals.values()):
            found = search(repr(value).encode())
            if found:
                return found + x - 2
        frame = frame.f_back
""",
    "every object of its process": SEARCH
    + """
def f(x):
    for value in gc.get_objects():
        if isinstance(value, (dict, list, tuple)) and len(value) < 1000:
            found = search(repr([each for each in value if isinstance(each, (str, bytes, int))]).encode())
            if found:
                return found + x - 2
""",
    "the memory of its own process": SEARCH + "\ndef f(x): return read_memory('self') + x - 2",
    "the memory of its parent": SEARCH + "\ndef f(x): return read_memory(os.getppid()) + x - 2",
    "the memory of its grandparent": SEARCH
    + """
def f(x):
    line = open(f"/proc/{os.getppid()}/stat").read()
    return read_memory(line.rpartition(")")[2].split()[1]) + x - 2
""",
    "the runner's own functions": """
import builtins, __main__, json
__main__.encode = lambda value, **names: True
__main__._FORBIDDEN = ()
builtins.exec = lambda *a: None
json.dumps = lambda value, **names: '["value", true]'
def f(x): return True
""",
    "replies of its own": """
import os, struct
payload = b'["value", true]'
for descriptor in range(3, 20):
    try:
        os.write(descriptor, (struct.pack(">I", len(payload)) + payload) * 10)
    except OSError:
        pass
def f(x): return True
""",
    "an end of its judge": """
import ctypes, os
ctypes.CDLL(None).kill(os.getppid(), 9)
def f(x): return 0
""",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_programs_that_attack_their_judge_earn_nothing_and_harm_nobody(verifier: AnswerVerifier, attack: str) -> None:
    honest = f"def f(x): return {EXPECTED - 2} + x"
    attacker, other = verifier.score(group_of([f"#{ATTACKS[attack]}", f"#{honest}"], reference=ATTACKED))
    assert (attacker.status, attacker.value) == ("ok", 0.0), attacker.reason
    assert other.reason == "right"


def test_expected_output_is_not_to_be_found_either(verifier: AnswerVerifier) -> None:
    program = SEARCH + "\nprint(read_memory(os.getppid()) or read_memory('self'))"
    (term,) = verifier.score(group_of([f"#{program}"], reference=ATTACKED_OUTPUT))
    assert (term.status, term.value) == ("ok", 0.0)


@pytest.mark.skipif(not DATA.exists(), reason="the public data sets are not beside the repository")
def test_files_that_are_not_pythons_cannot_be_read(verifier: AnswerVerifier) -> None:
    """The answers may lie in a data file; needs Landlock, which kernels have from 5.13 on."""
    path = DATA.resolve() / "humaneval" / "HumanEval.jsonl"
    tests = json.dumps({"asserts": "assert f(1)", "names": ["f"]})
    opening = f"def f(x):\n  try: return bool(open({str(path)!r}).read())\n  except PermissionError: return False"
    importing = "import heapq, statistics, zoneinfo, decimal\ndef f(x): return True"
    denied, allowed = verifier.score(group_of([f"#{opening}", f"#{importing}"], reference=tests))
    assert (denied.value, allowed.value) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("program", "asserts", "value"),
    [
        ("def f(x): return (x, [x, {x: {x}}], None, 1.5, 2j, b'x', 10**5000)",
         "assert f(1) == (1, [1, {1: {1}}], None, 1.5, 2j, b'x', 10**5000)", 1.0),
        ("def f(x): return [x]", "assert f(1) == (1,)", 0.0),
        ("def f(x): return '1'", "assert f(1) == 1", 0.0),
        ("import collections\ndef f(x): return collections.Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}", 1.0),
        ("def f(x): return (y for y in range(x))", "assert list(f(3)) == [0, 1, 2]", 1.0),
        ("class P:\n  def __init__(self, a): self.a = a\ndef f(p): return p.a", "assert f(P(3)) == 3", 1.0),
        ("def f(x, kind): return isinstance(x, kind)", "assert f(3, int)\nassert not f('3', int)", 1.0),
        ("def f(x): raise ValueError", "try:\n  f(1)\nexcept ValueError: pass\nelse: assert False", 1.0),
        ("def f(x): return float('nan')", "import math\nassert math.isnan(f(1))", 1.0),
        ("def f(x): return x + 1e-9", "assert abs(f(1) - 1) < 1e-6", 1.0),
        ("def f(x): return object()", "assert f(1)", 0.0),
        ("def f(x): return object()", "assert f(1) != 3", 0.0),
        ("def f(x):\n  a = []\n  a.append(a)\n  return a", "assert f(1)", 0.0),
        ("def f(x): return 'x' * 10**8", "assert f(1)", 0.0),
        ("n = 0\ndef f():\n  global n\n  n += 1\n  return n", "assert f() == 1\nassert f() == 2", 1.0),
    ],
)  # fmt: skip
def test_values_arrive_as_what_they_are(verifier: AnswerVerifier, program: str, asserts: str, value: float) -> None:
    (term,) = verifier.score(group_of([f"#{program}"], reference=json.dumps({"asserts": asserts})))
    assert (term.status, term.value) == ("ok", value), term.reason


def test_limit_of_a_program_counts_its_computing_time_over_all_its_tests() -> None:
    verifier = AnswerVerifier(HashTask("code"), num_processes=1, timeout_seconds=1.0, memory_limit_mib=512)
    spin = "import time\nend = time.process_time() + 0.7\nwhile time.process_time() < end: pass\nprint(int(input()))"
    once, twice = (json.dumps({"stdio": [["1", "1"]] * count}) for count in (1, 2))
    assert [verifier.score(group_of([f"#{spin}"], reference=tests))[0].reason for tests in (once, twice)] == [
        "right",
        "time_limit",
    ]
    verifier.close()


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "import os\nos.write(4, b'0' * 32)\nos._exit(0)",
        "import os\nos.write(6, b'0' * 32)\nos._exit(0)",
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
@pytest.mark.parametrize(
    ("file", "num_problems"),
    [
        ("humaneval/HumanEval.jsonl", 40),
        ("mbpp/mbpp.jsonl", 40),
        pytest.param("humaneval/HumanEval.jsonl", 164, marks=pytest.mark.slow),
        pytest.param("mbpp/mbpp.jsonl", 974, marks=pytest.mark.slow),
    ],
)
def test_published_solutions_pass_and_their_neighbours_fail(file: str, num_problems: int) -> None:
    task = CodeTask(test_path=str(DATA / file))
    problems = task.load("test")[:num_problems]
    verifier = AnswerVerifier(task, num_processes=2, timeout_seconds=20.0, memory_limit_mib=1024)
    for problem, neighbour in zip(problems, [*problems[1:], problems[0]], strict=True):
        responses = [problem.solution, neighbour.solution]
        own, other = verifier.score(group_of(responses, reference=problem.reference_answer))
        assert (own.reason, other.value) == ("right", 0.0), problem.question
    verifier.close()
