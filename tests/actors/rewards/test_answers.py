"""Classes of equal answers: exact for rationals, by representative for mathematics, bounded for hostile ones."""

from collections.abc import Iterator

import pytest

from actors.rewards.answers import (
    MAX_ANSWER_CHARACTERS,
    Answer,
    ClassifiedAnswer,
    answer_classes,
    read_answer,
    start_answer_sandbox,
)
from actors.sandbox.sandbox import Sandbox
from system.interfaces import AnswerKind
from system.records import FinishReason
from tests.actors.rewards.answer_tasks import HashTask


@pytest.fixture(scope="module")
def rational_sandbox() -> Iterator[Sandbox]:
    with start_answer_sandbox("rational", num_processes=1, timeout_seconds=20.0, memory_limit_mib=512) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def math_sandbox() -> Iterator[Sandbox]:
    with start_answer_sandbox("math", num_processes=1, timeout_seconds=20.0, memory_limit_mib=512) as sandbox:
        yield sandbox


def classify(texts: list[str], *, sandbox: Sandbox) -> list[ClassifiedAnswer]:
    return answer_classes([Answer(text=text, reason="") for text in texts], sandbox=sandbox)


def indices(texts: list[str], *, sandbox: Sandbox) -> list[int]:
    return [answer.class_index for answer in classify(texts, sandbox=sandbox)]


def test_rationals_are_equal_when_their_exact_values_are(rational_sandbox: Sandbox) -> None:
    texts = ["1/2", "72", "0.5", "7", "72.0", "$72", "2/4", "0.3333", "1/3", "-72", "0"]
    # "72" and "1/2" come first among equals, "1/2" earlier
    assert indices(texts, sandbox=rational_sandbox) == [0, 1, 0, 2, 1, 1, 0, 3, 4, 5, 6]


def test_mathematics_is_equal_when_math_verify_says_so(math_sandbox: Sandbox) -> None:
    texts = ["\\frac12", "(x+1)^2", "0.5", "x^2+2x+1", "1/2", "3"]
    assert indices(texts, sandbox=math_sandbox) == [0, 1, 0, 1, 0, 2]


def test_the_most_frequent_text_opens_the_first_class(rational_sandbox: Sandbox) -> None:
    assert indices(["5", "6", "7", "6.0", "6", "7"], sandbox=rational_sandbox) == [2, 0, 1, 0, 0, 1]


def test_unreadable_answers_are_in_no_class_even_when_they_agree(rational_sandbox: Sandbox) -> None:
    answers = classify(["72 apples", "72", "72 apples", "1/0"], sandbox=rational_sandbox)
    assert [(answer.class_index, answer.status, answer.reason) for answer in answers] == [
        (-1, "ok", "unparseable"),
        (0, "ok", ""),
        (-1, "ok", "unparseable"),
        (-1, "ok", "unparseable"),
    ]


def test_text_answers_of_mathematics_equal_the_same_text(math_sandbox: Sandbox) -> None:
    assert indices(["\\text{east}", "\\text{west}", "\\text{East}", "5"], sandbox=math_sandbox) == [0, 1, 0, 2]
    (nothing,) = classify(["   "], sandbox=math_sandbox)
    assert (nothing.class_index, nothing.status, nothing.reason) == (-1, "ok", "unparseable")


def test_missing_answers_keep_their_place_and_reason(rational_sandbox: Sandbox) -> None:
    missing = Answer(text=None, reason="truncated")
    answers = answer_classes([missing, Answer(text="5", reason=""), missing], sandbox=rational_sandbox)
    assert [(answer.class_index, answer.reason) for answer in answers] == [
        (-1, "truncated"),
        (0, ""),
        (-1, "truncated"),
    ]
    assert answer_classes([], sandbox=rational_sandbox) == []
    assert [answer.class_index for answer in answer_classes([missing] * 3, sandbox=rational_sandbox)] == [-1] * 3


def test_a_hostile_answer_is_invalid_once_and_the_others_are_compared() -> None:
    with start_answer_sandbox("math", num_processes=2, timeout_seconds=1.0, memory_limit_mib=512) as sandbox:
        texts = ["9^{9^{9^9}}", "3", "\\frac{6}{2}", "(" * 900 + "1" + ")" * 900, "4", "9^{9^{9^9}}"]
        bomb, three, also_three, nested, four, same_bomb = classify(texts, sandbox=sandbox)
    assert three.class_index == also_three.class_index == 0
    assert four.class_index == 1
    assert {bomb.status, same_bomb.status} == {"invalid"}
    assert bomb.reason in {"timeout", "memory"}
    assert (nested.status, nested.reason) == ("ok", "unparseable")
    assert bomb == same_bomb
    assert bomb.class_index == nested.class_index == -1


@pytest.mark.parametrize(
    ("response", "finish_reason", "answer_kind", "expected"),
    [
        ("so #72", "stop", "rational", Answer(text="72", reason="")),
        ("so #72", "length", "rational", Answer(text=None, reason="truncated")),
        ("so #72", "length", "math", Answer(text="72", reason="")),
        ("nothing", "length", "math", Answer(text=None, reason="no_answer")),
        ("#", "stop", "rational", Answer(text=None, reason="no_answer")),
        ("#" + "7" * MAX_ANSWER_CHARACTERS, "stop", "math", Answer(text="7" * MAX_ANSWER_CHARACTERS, reason="")),
        ("#" + "7" * (MAX_ANSWER_CHARACTERS + 1), "stop", "math", Answer(text=None, reason="answer_too_long")),
    ],
)
def test_answers_are_read_from_responses(
    response: str, finish_reason: FinishReason, answer_kind: AnswerKind, expected: Answer
) -> None:
    assert read_answer(response, finish_reason=finish_reason, task=HashTask(answer_kind)) == expected


THOUGHT = "<think>so #4</think>"


@pytest.mark.parametrize(
    ("response", "prompt", "answer"),
    [
        (f"{THOUGHT} it is #5", "", "5"),
        (THOUGHT, "", None),
        (f"{THOUGHT} it is", "", None),
        ("<think>so #4", "", None),
        (f"{THOUGHT} #5 <think>or #6", "", None),
        (f"{THOUGHT}{THOUGHT}#7", "", "7"),
        ("so #4", "", "4"),
        ("so #4", "Question?\n<think>\n", None),
        ("so #4</think> #5", "Question?\n<think>\n", "5"),
        ("#5", "Put it behind <think> and </think>.", "5"),
    ],
)
def test_answers_within_thinking_do_not_count_where_asked(response: str, prompt: str, answer: str | None) -> None:
    task = HashTask("math")
    read = read_answer(response, finish_reason="stop", task=task, prompt=prompt, after_thinking=True)
    assert read == Answer(text=answer, reason="" if answer else "no_answer")
    anywhere = read_answer(response, finish_reason="stop", task=task, prompt=prompt)
    assert anywhere.text is not None
