"""The reward worker: order of terms, faults that pass through, scorers that are closed."""

import math

import pytest

from actors.rewards.answer_verifier import AnswerVerifier
from actors.rewards.worker import RewardWorker
from system.records import RewardTerm, TrajectoryGroup
from tests.actors.rewards.answer_tasks import HashTask, group_of


class LengthScorer:
    """Value: number of characters. Records its calls in `events`."""

    def __init__(self, name: str, *, events: list[str], num_missing: int = 0) -> None:
        self.name = name
        self._events = events
        self._num_missing = num_missing

    def score(self, group: TrajectoryGroup) -> tuple[RewardTerm, ...]:
        self._events.append(f"score {self.name}")
        return tuple(
            RewardTerm(
                scorer=self.name,
                value=float(len(trajectory.text)),
                status="ok",
                reason="length",
                policy_version=4,
                seconds=0.0,
            )
            for trajectory in group.trajectories[self._num_missing :]
        )

    def close(self) -> None:
        self._events.append(f"close {self.name}")


class BrokenScorer(LengthScorer):
    def score(self, group: TrajectoryGroup) -> tuple[RewardTerm, ...]:
        raise KeyError("a fault of ours")

    def close(self) -> None:
        super().close()
        raise OSError("cannot close")


def test_terms_stand_in_the_order_of_completions_and_scorers() -> None:
    verifier = AnswerVerifier(HashTask("rational"), num_processes=1, timeout_seconds=20.0, memory_limit_mib=256)
    worker = RewardWorker([verifier, LengthScorer("length", events=[])])
    group = group_of(["#72", "48/2=24", "#7"], reference="72")
    scored = worker.score(group)
    worker.close()
    assert [[term.scorer for term in row] for row in scored.terms] == [["verifier", "length"]] * 3
    assert [[term.value for term in row] for row in scored.terms] == [[1.0, 3.0], [0.0, 7.0], [0.0, 2.0]]
    assert [row[0].reason for row in scored.terms] == ["right", "no_answer", "wrong"]
    assert scored.group is group
    assert scored.belief_traces == ()


def test_hostile_responses_give_terms_and_no_exception() -> None:
    verifier = AnswerVerifier(HashTask("rational"), num_processes=1, timeout_seconds=20.0, memory_limit_mib=256)
    worker = RewardWorker([verifier])
    responses = ["", "#", "#\x00", "#\ud800", "#" + "9" * 1_000_000, "#1e999999999", "\u202e#72", "#72"]
    scored = worker.score(group_of(responses, reference="72"))
    worker.close()
    assert [row[0].reason for row in scored.terms] == [
        "no_answer", "no_answer", "unparseable", "unparseable", "answer_too_long", "unparseable", "right", "right",
    ]  # fmt: skip
    assert all(math.isfinite(row[0].value) for row in scored.terms)


def test_a_fault_of_a_scorer_passes_through() -> None:
    worker = RewardWorker([LengthScorer("length", events=[]), BrokenScorer("broken", events=[])])
    with pytest.raises(KeyError, match="a fault of ours"):
        worker.score(group_of(["#72"], reference="72"))


def test_a_scorer_that_forgets_a_completion_is_refused() -> None:
    worker = RewardWorker([LengthScorer("length", events=[], num_missing=1)])
    with pytest.raises(ValueError, match="'length' gave 1 terms for 2 trajectories of group 7"):
        worker.score(group_of(["#72", "#71"], reference="72"))


def test_all_scorers_are_closed_even_when_one_fails_to() -> None:
    events: list[str] = []
    worker = RewardWorker(
        [LengthScorer(name, events=events) for name in ("first", "second")] + [BrokenScorer("third", events=events)]
    )
    with pytest.raises(OSError, match="cannot close"):
        worker.close()
    assert sorted(events) == ["close first", "close second", "close third"]


def test_scorers_need_distinct_names() -> None:
    with pytest.raises(ValueError, match="distinct names"):
        RewardWorker([])
    with pytest.raises(ValueError, match="distinct names"):
        RewardWorker([LengthScorer("length", events=[]), LengthScorer("length", events=[])])
