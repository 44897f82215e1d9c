"""Hypotheses of a group: the reference first, then its distinct wrong answers, by the verifier's own equality."""

from collections.abc import Iterator

import pytest

from actors.rewards.answer_verifier import AnswerVerifier
from actors.rewards.hypotheses import HypothesisFinder
from actors.rewards.worker import RewardWorker
from tests.actors.rewards.answer_tasks import HashTask, group_of


def make_worker(*, max_candidates: int) -> RewardWorker:
    verifier = AnswerVerifier(HashTask("rational"), num_processes=1, timeout_seconds=20.0, memory_limit_mib=512)
    return RewardWorker([verifier], hypothesis_finder=HypothesisFinder(verifier, max_candidates=max_candidates))


@pytest.fixture(scope="module")
def worker() -> Iterator[RewardWorker]:
    worker = make_worker(max_candidates=2)
    yield worker
    worker.close()


def found(worker: RewardWorker, *responses: str) -> tuple[tuple[str, ...], list[int]]:
    hypotheses = worker.score(group_of(list(responses), reference="72"), with_hypotheses=True).hypotheses
    assert hypotheses is not None
    return hypotheses.answers, hypotheses.stated.tolist()


def test_reference_comes_first_and_wrong_answers_by_their_number(worker: RewardWorker) -> None:
    responses = ["#7", "#72", "#0.5", "#1/2", "#8", "none", "#72.0", "#0.5"]
    assert found(worker, *responses) == (("72", "0.5", "7"), [2, 0, 1, 1, -1, -1, 0, 1])


def test_class_is_written_as_most_of_it(worker: RewardWorker) -> None:
    assert found(worker, "#0.5", "#1/2", "#1/2") == (("72", "1/2"), [1, 1, 1])


def test_group_that_is_all_right_has_the_reference_alone(worker: RewardWorker) -> None:
    assert found(worker, "#72", "#72.00") == (("72",), [0, 0])


def test_group_without_an_answer_has_the_reference_alone(worker: RewardWorker) -> None:
    assert found(worker, "none", "#x") == (("72",), [-1, -1])


def test_hypotheses_are_found_only_where_they_are_asked_for(worker: RewardWorker) -> None:
    assert worker.score(group_of(["#7"], reference="72")).hypotheses is None
    verifier = AnswerVerifier(HashTask("rational"), num_processes=1, timeout_seconds=20.0, memory_limit_mib=512)
    without = RewardWorker([verifier])
    with pytest.raises(ValueError, match="finds no hypotheses"):
        without.score(group_of(["#7"], reference="72"), with_hypotheses=True)
    without.close()


def test_progress_asks_for_the_reference_alone() -> None:
    worker = make_worker(max_candidates=0)
    assert found(worker, "#7", "#72") == (("72",), [-1, 0])
    worker.close()
