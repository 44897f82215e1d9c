"""The plurality scorer: who is in the majority, and what happens to those who cannot be."""

from collections.abc import Iterator

import pytest

from actors.rewards.plurality import PluralityScorer
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.interfaces import AnswerKind
from tests.actors.rewards.answer_tasks import HashTask, group_of

# No scorer may read it: the reference is not even readable.
NO_REFERENCE = "seventy-two"


def new_scorer(answer_kind: AnswerKind, *, timeout_seconds: float = 20.0, num_processes: int = 1) -> PluralityScorer:
    return PluralityScorer(
        HashTask(answer_kind), num_processes=num_processes, timeout_seconds=timeout_seconds, memory_limit_mib=512
    )


@pytest.fixture(scope="module")
def scorer() -> Iterator[PluralityScorer]:
    scorer = new_scorer("rational")
    yield scorer
    scorer.close()


def outcome(scorer: PluralityScorer, responses: list[str]) -> list[tuple[float, str]]:
    terms = scorer.score(group_of(responses, reference=NO_REFERENCE))
    assert {(term.scorer, term.policy_version, term.status) for term in terms} == {("plurality", -1, "ok")}
    return [(term.value, term.reason) for term in terms]


def test_the_largest_class_of_equal_answers_gets_one_without_a_label(scorer: PluralityScorer) -> None:
    assert outcome(scorer, ["#7", "#72", "#7.0", "no", "#$7", "#72", "#x"]) == [
        (1.0, "plurality"),
        (0.0, "minority"),
        (1.0, "plurality"),
        (0.0, "no_answer"),
        (1.0, "plurality"),
        (0.0, "minority"),
        (0.0, "unparseable"),
    ]


def test_classes_of_equal_size_share_the_plurality(scorer: PluralityScorer) -> None:
    assert [value for value, _ in outcome(scorer, ["#1", "#2", "#3", "#2", "#1"])] == [1.0, 1.0, 0.0, 1.0, 1.0]


def test_a_group_whose_members_all_disagree_has_no_spread(scorer: PluralityScorer) -> None:
    assert {value for value, _ in outcome(scorer, ["#1", "#2", "#3"])} == {1.0}


def test_a_group_without_answers_gets_zero_throughout(scorer: PluralityScorer) -> None:
    assert outcome(scorer, ["a", "b", "#", "#x", "#x"]) == [(0.0, "no_answer")] * 3 + [(0.0, "unparseable")] * 2


def test_a_number_cut_at_the_length_limit_has_no_vote(scorer: PluralityScorer) -> None:
    terms = scorer.score(group_of(["#7", "#7"], reference=NO_REFERENCE, finish_reason="length"))
    assert [(term.value, term.reason) for term in terms] == [(0.0, "truncated")] * 2


def test_answers_that_cannot_be_compared_are_invalid_and_do_not_vote() -> None:
    scorer = new_scorer("math", timeout_seconds=1.0, num_processes=2)
    bomb = "#9^{9^{9^9}}"
    terms = scorer.score(group_of([bomb, bomb, bomb, "#\\frac12", "#3", "#0.5"], reference=NO_REFERENCE))
    scorer.close()
    assert {(term.status, term.reason) for term in terms[:3]} <= {("invalid", "timeout"), ("invalid", "memory")}
    assert [(term.value, term.reason) for term in terms[3:]] == [
        (1.0, "plurality"), (0.0, "minority"), (1.0, "plurality"),
    ]  # fmt: skip


def test_the_solutions_of_the_chains_task_agree_with_themselves() -> None:
    task = Gsm8kChainsTask()
    scorer = PluralityScorer(task, num_processes=1, timeout_seconds=20.0, memory_limit_mib=512)
    for problem in task.load("test")[:50]:
        group = group_of([problem.solution + "1", problem.solution, problem.solution], reference=NO_REFERENCE)
        assert [term.value for term in scorer.score(group)] == [0.0, 1.0, 1.0]
    scorer.close()
