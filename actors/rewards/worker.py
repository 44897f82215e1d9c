"""The reward worker: runs the scorers that need no policy over groups of trajectories.

Made remote by system/runtime/placement.py. It scores several groups in one call: a call costs more than a check.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from actors.rewards.value_scorer import ValueScorer
from system.config.imports import import_class
from system.config.schema import RewardConfig, RewardTermConfig, TaskConfig
from system.config.scorers import scorer_place, terms_on
from system.data.tasks import make_task
from system.interfaces import Scorer
from system.records import GroupScores, TrajectoryGroup
from system.stack_signal import catch_stack_signal

if TYPE_CHECKING:
    from system.algorithms.base import Evidence

VERIFIER = "verifier"


class RewardWorker:
    """Hosts the scorers of `reward.terms` that run here, and owns them. Not thread-safe; one call at a time."""

    def __init__(self, *, task: TaskConfig, reward: RewardConfig, evidence: Evidence | None = None) -> None:
        self._scorers = [_make_scorer(term, task=task, reward=reward) for term in terms_on(reward, "answers", "values")]
        self._finder: Any = None
        if evidence is not None:
            kind = import_class(evidence.by_rule, key="algorithm.name", methods=("find",))
            verifier = next(scorer for scorer in self._scorers if scorer.name == VERIFIER)
            self._finder = kind(verifier, options=evidence.options)

    def start(self) -> None:
        """Answers once the scorers are ready to score."""
        catch_stack_signal()

    def score(self, groups: Sequence[tuple[TrajectoryGroup, bool]]) -> list[GroupScores]:
        """One term of each scorer for each trajectory, and with True what the algorithm asks for.

        A scorer reports trouble with a model's text as an invalid term. An exception is a fault of ours and passes
        through.
        """
        return [self._score(group, with_evidence=with_evidence) for group, with_evidence in groups]

    def _score(self, group: TrajectoryGroup, *, with_evidence: bool) -> GroupScores:
        columns = []
        for scorer in self._scorers:
            terms = scorer.score(group)
            if len(terms) != len(group.trajectories):
                raise ValueError(
                    f"scorer {scorer.name!r} gave {len(terms)} terms for {len(group.trajectories)} trajectories "
                    f"of group {group.group_id}"
                )
            columns.append(terms)
        evidence: tuple[object, ...] | None = None
        if with_evidence:
            assert self._finder is not None, "asked for by the algorithm that this worker was made for"
            verdicts = next(terms for terms in columns if terms[0].scorer == VERIFIER)
            evidence = (self._finder.find(group, verdicts=verdicts),) * len(group.trajectories)
        return GroupScores(terms=tuple(zip(*columns, strict=True)), evidence=evidence)

    def shutdown(self) -> None:
        """Close every scorer, also when one of them raises. Safe to call again."""
        with ExitStack() as stack:
            for scorer in self._scorers:
                stack.callback(scorer.close)


def _make_scorer(term: RewardTermConfig, *, task: TaskConfig, reward: RewardConfig) -> Scorer:
    place = scorer_place(term.scorer, key="reward.terms")
    if place.runs == "values":
        return ValueScorer(term)
    kind = import_class(place.path, key="reward.terms", methods=("score",))
    scorer: Scorer = kind(
        task=make_task(task),
        num_processes=reward.processes_per_worker,
        timeout_seconds=reward.timeout_seconds,
        memory_limit_mib=reward.memory_limit_mib,
        timeout_is=reward.timeout_is,
        answer_after_thinking=reward.answer_after_thinking,
    )
    return scorer
