"""The reward worker: which scorers it makes of reward.terms, order of terms, what an algorithm asks for, closing."""

import math
from collections.abc import Iterator

import pytest

from actors.rewards.worker import RewardWorker
from system.config.schema import RewardConfig, RewardTermConfig, TaskConfig
from system.records import TrajectoryGroup
from tests.actors.rewards.answer_tasks import group_of

CHAINS = TaskConfig(name="gsm8k_chains")
VERIFIER = RewardTermConfig(scorer="verifier")
CLOSED: list[str] = []


class Characters:
    def score(self, group: TrajectoryGroup) -> list[float]:
        return [float(len(trajectory.text)) for trajectory in group.trajectories]

    def close(self) -> None:
        CLOSED.append("characters")


class CannotClose(Characters):
    def close(self) -> None:
        raise OSError("cannot close")


def make_worker(*terms: RewardTermConfig) -> RewardWorker:
    reward = RewardConfig(terms=terms, timeout_seconds=20.0, memory_limit_mib=512)
    return RewardWorker(task=CHAINS, reward=reward)


def own(name: str) -> RewardTermConfig:
    return RewardTermConfig(scorer=f"{__name__}:{name}")


@pytest.fixture(scope="module")
def worker() -> Iterator[RewardWorker]:
    worker = make_worker(VERIFIER, RewardTermConfig(scorer="plurality", weight=0.0), own("Characters"))
    yield worker
    worker.shutdown()


def test_terms_stand_in_the_order_of_trajectories_and_scorers(worker: RewardWorker) -> None:
    groups = [group_of(["#72", "48/2=24", "#7"], reference="72"), group_of(["#1", "#1"], reference="2")]
    first, second = worker.score([(group, False) for group in groups])
    assert [[term.scorer for term in row] for row in first.terms] == [["verifier", "plurality", "characters"]] * 3
    assert [[term.value for term in row] for row in first.terms] == [[1.0, 1.0, 3.0], [0.0, 0.0, 7.0], [0.0, 1.0, 2.0]]
    assert [row[0].reason for row in first.terms] == ["right", "no_answer", "wrong"]
    assert first.evidence is None
    assert [[term.value for term in row] for row in second.terms] == [[0.0, 1.0, 2.0]] * 2


def test_hostile_responses_give_terms_and_no_exception(worker: RewardWorker) -> None:
    responses = ["", "#", "#\x00", "#\ud800", "#" + "9" * 1_000_000, "#1e999999999", "\u202e#72", "#72"]
    (scores,) = worker.score([(group_of(responses, reference="72"), False)])
    assert [row[0].reason for row in scores.terms][-1] == "right"
    assert all(math.isfinite(term.value) for row in scores.terms for term in row)
    assert [row[0].value for row in scores.terms][:6] == [0.0] * 6


def test_all_scorers_are_closed_even_when_one_fails_to() -> None:
    CLOSED.clear()
    worker = make_worker(VERIFIER, own("Characters"), own("CannotClose"))
    with pytest.raises(OSError, match="cannot close"):
        worker.shutdown()
    assert CLOSED == ["characters"]
