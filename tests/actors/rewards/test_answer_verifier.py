"""The verifier on answers that are right, wrong, unreadable and hostile."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.rewards.answer_verifier import AnswerVerifier
from actors.rewards.answers import MAX_ANSWER_CHARACTERS
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from tests.actors.rewards.answer_tasks import HashTask, group_of

DATA = Path(__file__).parents[3] / ".." / "shared" / "data"

RIGHT, WRONG, UNPARSEABLE = ("ok", "right"), ("ok", "wrong"), ("ok", "unparseable")

RATIONAL_ANSWERS = [
    ("72", "72", RIGHT),
    ("72.0", "72", RIGHT),
    ("072", "72", RIGHT),
    (" 72 ", "72", RIGHT),
    ("+72", "72", RIGHT),
    ("72.", "72", RIGHT),
    ("$72", "72", RIGHT),
    ("\\$72", "72", RIGHT),
    ("20%", "20", RIGHT),
    ("1,234,567", "1234567", RIGHT),
    ("1234567", "1,234,567", RIGHT),
    ("1/2", "0.5", RIGHT),
    ("-1 / 2", "-0.5", RIGHT),
    ("\u22122", "-2", RIGHT),
    (".5", "1/2", RIGHT),
    ("1e3", "1000", RIGHT),
    ("1/3", "2/6", RIGHT),
    ("0.30000000000000000001", "0.3", WRONG),
    ("0.333333", "1/3", WRONG),
    ("-72", "72", WRONG),
    ("0", "-0", RIGHT),
    ("1e999999999", "72", UNPARSEABLE),
    ("1e-999999999", "0", UNPARSEABLE),
    ("10**10**10", "72", UNPARSEABLE),
    ("1/0", "72", UNPARSEABLE),
    ("9" * 257, "72", UNPARSEABLE),
    ("9" * MAX_ANSWER_CHARACTERS, "72", UNPARSEABLE),
    ("1/" * 900 + "1", "72", UNPARSEABLE),
    ("1,23", "123", UNPARSEABLE),
    ("7 2", "72", UNPARSEABLE),
    ("72 apples", "72", UNPARSEABLE),
    ("--72", "72", UNPARSEABLE),
    ("nan", "72", UNPARSEABLE),
    ("inf", "72", UNPARSEABLE),
    (".", "72", UNPARSEABLE),
    ("-", "72", UNPARSEABLE),
    ("\u0667\u0662", "72", UNPARSEABLE),  # 72 in Arabic-Indic digits
    ("\u202e27", "72", UNPARSEABLE),  # shown right to left
    ("72\x00", "72", UNPARSEABLE),
    ("\ud800", "72", UNPARSEABLE),
    ("7_2", "72", UNPARSEABLE),
    ("0x48", "72", UNPARSEABLE),
    ("72", "seventy-two", ("invalid", "unparseable_reference")),
]

CASES = Path(__file__).with_name("answer_cases.txt")
HOSTILE_ANSWERS = [
    "^" * 1000, "\\sqrt{" * 250 + "2" + "}" * 250, "9" * 1900, "(" * 900 + "3" + ")" * 900, "{" * 1000, "3 " * 900,
    "3," * 900, "=" * 900, "\\text{" * 300, "**" * 500, "\\pm" * 300, "\\frac{" * 200 + "3" + "}" * 200, "3 x" * 600,
    "a b " * 480, "\\text{a} " * 200, "$" * 1999, "3/" * 900, "\\cup" * 300, "3=4=" * 450, "x_" * 900, "\\boxed{" * 250,
]  # fmt: skip


def read_cases() -> list[tuple[str, str, str]]:
    """(answer, reference, "right" or "wrong") of each line of answer_cases.txt."""
    cases: list[tuple[str, str, str]] = []
    verdict = ""
    for line in CASES.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            verdict = line.rpartition(": ")[2]
        elif line and not line.startswith("# "):
            answer, reference = json.loads(line) if line.startswith("[") else line.split(" :: ")
            cases.append((answer, reference, verdict))
    return cases


MATH_BOMBS = [
    "9^{9^{9^9}}",
    "10000000000!",
    "(1+x)^{100000}",
    "\\sin(" * 10 + "1" + ")" * 10 + " + 9^{9^{9}}",
]

MODEL_FAILURES = [
    ("no mark at all", "no_answer"),
    ("", "no_answer"),
    ("an empty answer #", "no_answer"),
    ("#" + "7" * (MAX_ANSWER_CHARACTERS + 1), "answer_too_long"),
    ("#" + "\\frac{1}{" * 300_000, "answer_too_long"),
    ("x" * 5_000_000 + "#72 apples", "unparseable"),
]


def new_verifier(answer_kind: str, *, timeout_seconds: float, num_processes: int = 1) -> AnswerVerifier:
    assert answer_kind in ("rational", "math")
    return AnswerVerifier(
        HashTask("rational" if answer_kind == "rational" else "math"),
        num_processes=num_processes,
        timeout_seconds=timeout_seconds,
        memory_limit_mib=512,
    )


@pytest.fixture(scope="module")
def rational_verifier() -> Iterator[AnswerVerifier]:
    verifier = new_verifier("rational", timeout_seconds=20.0)
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def math_verifier() -> Iterator[AnswerVerifier]:
    verifier = new_verifier("math", timeout_seconds=20.0)
    yield verifier
    verifier.close()


def check(verifier: AnswerVerifier, answer: str, *, reference: str, expected: tuple[str, str]) -> None:
    (term,) = verifier.score(group_of([f"#{answer}"], reference=reference))
    assert (term.status, term.reason) == expected
    assert term.value == (1.0 if expected == RIGHT else 0.0)
    assert (term.scorer, term.policy_version) == ("verifier", -1)


@pytest.mark.parametrize(("answer", "reference", "expected"), RATIONAL_ANSWERS)
def test_rational_answers(
    rational_verifier: AnswerVerifier, answer: str, reference: str, expected: tuple[str, str]
) -> None:
    check(rational_verifier, answer, reference=reference, expected=expected)


@pytest.mark.parametrize(("answer", "reference", "expected"), read_cases())
def test_math_answers(math_verifier: AnswerVerifier, answer: str, reference: str, expected: str) -> None:
    (term,) = math_verifier.score(group_of([f"#{answer}"], reference=reference))
    assert (term.status, term.value) == ("ok", float(expected == "right")), term.reason


def test_hostile_answers_are_wrong_and_quickly(math_verifier: AnswerVerifier) -> None:
    terms = math_verifier.score(group_of([f"#{answer}" for answer in HOSTILE_ANSWERS], reference="3"))
    assert {(term.status, term.value) for term in terms} == {("ok", 0.0)}
    assert "timeout" not in {term.reason for term in terms}


def test_math_reference_that_is_nothing_is_invalid(math_verifier: AnswerVerifier) -> None:
    check(math_verifier, "3", reference="", expected=("invalid", "unparseable_reference"))


def test_bombs_are_invalid_within_their_limit_and_the_others_of_the_group_are_judged() -> None:
    verifier = new_verifier("math", timeout_seconds=1.0, num_processes=2)
    responses = [f"#{answer}" for answer in ("3", *MATH_BOMBS, "4", "\\frac{6}{2}")]
    terms = verifier.score(group_of(responses, reference="3"))
    verifier.close()
    assert [terms[index].reason for index in (0, -2, -1)] == ["right", "wrong", "right"]
    bomb_terms = terms[1:-2]
    assert {term.status for term in bomb_terms} == {"invalid"}
    assert {term.reason for term in bomb_terms} <= {"timeout", "memory"}


def test_bomb_is_wrong_where_the_configuration_says_so() -> None:
    verifier = AnswerVerifier(
        HashTask("math"), num_processes=1, timeout_seconds=0.5, memory_limit_mib=512, timeout_is="wrong"
    )
    bomb, right = verifier.score(group_of([f"#{MATH_BOMBS[0]}", "#3"], reference="3"))
    verifier.close()
    assert (bomb.status, bomb.value, right.reason) == ("ok", 0.0, "right")
    assert bomb.reason in ("timeout", "memory")


@pytest.mark.parametrize("answer_kind", ["rational", "math"])
def test_a_response_without_a_readable_answer_is_wrong_and_not_invalid(answer_kind: str) -> None:
    verifier = new_verifier(answer_kind, timeout_seconds=20.0)
    terms = verifier.score(group_of([response for response, _ in MODEL_FAILURES[:-1]], reference="72"))
    verifier.close()
    assert [term.reason for term in terms] == [reason for _, reason in MODEL_FAILURES[:-1]]
    assert {(term.status, term.value) for term in terms} == {("ok", 0.0)}


def test_a_megabyte_before_the_answer_does_not_matter(rational_verifier: AnswerVerifier) -> None:
    response, reason = MODEL_FAILURES[-1]
    (term,) = rational_verifier.score(group_of([response], reference="72"))
    assert (term.status, term.reason) == ("ok", reason)


def test_a_number_cut_at_the_length_limit_is_no_answer(rational_verifier: AnswerVerifier) -> None:
    terms = rational_verifier.score(group_of(["48/2=24\n48+", "#72"], reference="72", finish_reason="length"))
    assert [(term.status, term.value, term.reason) for term in terms] == [("ok", 0.0, "truncated")] * 2


def test_a_formula_cut_at_the_length_limit_is_judged_by_what_it_states(math_verifier: AnswerVerifier) -> None:
    terms = math_verifier.score(group_of(["48/2", "#72"], reference="72", finish_reason="length"))
    assert [(term.value, term.reason) for term in terms] == [(0.0, "no_answer"), (1.0, "right")]


def test_terms_keep_the_order_of_the_completions_when_answers_repeat(rational_verifier: AnswerVerifier) -> None:
    responses = ["#1", "#72", "none", "#72", "#x", "#1", "#72.0"]
    terms = rational_verifier.score(group_of(responses, reference="72"))
    assert [term.reason for term in terms] == [
        "wrong", "right", "no_answer", "right", "unparseable", "wrong", "right",
    ]  # fmt: skip


def test_a_reference_that_is_too_long_is_invalid_and_not_zero(rational_verifier: AnswerVerifier) -> None:
    (term,) = rational_verifier.score(group_of(["#72"], reference="7" * 100_000))
    assert (term.status, term.reason) == ("invalid", "too_long")


def test_a_small_memory_limit_fails_at_start_instead_of_judging_answers() -> None:
    with pytest.raises(ValueError, match="memory_limit_mib"):
        AnswerVerifier(HashTask("math"), num_processes=1, timeout_seconds=1.0, memory_limit_mib=16)


def test_the_solutions_of_the_chains_task_are_right_and_other_answers_wrong() -> None:
    task = Gsm8kChainsTask()
    problems = task.load("test")[:300]
    verifier = AnswerVerifier(task, num_processes=1, timeout_seconds=20.0, memory_limit_mib=512)
    for problem in problems:
        group = group_of([problem.solution, problem.solution + "1", "#"], reference=problem.reference_answer)
        assert [term.reason for term in verifier.score(group)] == ["right", "wrong", "no_answer"]
    verifier.close()


@pytest.mark.skipif(not (DATA / "math" / "math500_test.jsonl").exists(), reason="MATH-500 is not at hand")
def test_every_reference_of_math_500_equals_itself_and_not_its_neighbour(math_verifier: AnswerVerifier) -> None:
    lines = (DATA / "math" / "math500_test.jsonl").read_text(encoding="utf-8").splitlines()
    references = [json.loads(line)["answer"] for line in lines]
    num_right = num_neighbour_right = 0
    for index, reference in enumerate(references):
        answers = [reference, references[index - 1]] if index < 100 else [reference]
        own, *other = math_verifier.score(group_of([f"#{answer}" for answer in answers], reference=reference))
        num_right += own.reason == "right"
        num_neighbour_right += any(term.reason == "right" for term in other) and answers[0] != answers[1]
    assert num_right == 500
    assert num_neighbour_right == 1  # "5" for the reference "x=5", as it should be
