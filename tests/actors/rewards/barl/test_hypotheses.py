"""Hypotheses of a group: the reference first, then its distinct wrong answers, by equality or by text."""

from collections.abc import Iterator

import pytest

from actors.rewards.worker import RewardWorker
from system.algorithms.barl.barl import Barl
from system.algorithms.barl.options import BarlOptions, ProgressOptions
from system.config.schema import RewardConfig, TaskConfig
from tests.actors.rewards.answer_tasks import group_of


def make_worker(options: ProgressOptions) -> RewardWorker:
    reward = RewardConfig(timeout_seconds=20.0, memory_limit_mib=512)
    return RewardWorker(task=TaskConfig(name="gsm8k_chains"), reward=reward, evidence=Barl.evidence(options))


@pytest.fixture(scope="module")
def worker() -> Iterator[RewardWorker]:
    worker = make_worker(BarlOptions(candidates=2))
    yield worker
    worker.shutdown()


def found(worker: RewardWorker, *responses: str, reference: str = "72") -> tuple[tuple[str, ...], list[int]]:
    (scores,) = worker.score([(group_of(list(responses), reference=reference), True)])
    assert scores.evidence is not None
    assert len(scores.evidence) == len(responses)
    return scores.evidence[0].answers, scores.evidence[0].stated.tolist()


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
    (scores,) = worker.score([(group_of(["#7"], reference="72"), False)])
    assert scores.evidence is None


def test_progress_asks_for_the_reference_alone() -> None:
    worker = make_worker(ProgressOptions())
    assert found(worker, "#7", "#72") == (("72",), [-1, 0])
    worker.shutdown()


def test_exact_hypotheses_are_distinct_short_texts() -> None:
    # as the authors take them: the right text of the group stands for the reference, which joins when none is right
    worker = make_worker(BarlOptions(hypotheses="exact"))
    assert found(worker, "#72.0", "#7", "#7", "#72", "#" + "8" * 21) == (("72.0", "7", "72"), [0, 1, 1, 2, -1])
    assert found(worker, "#7", "#8", "#8") == (("72", "8", "7"), [2, 1, 1])
    assert found(worker, "none") == (("72",), [-1])
    worker.shutdown()
