"""BARL: each step is credited by the belief over candidate answers; Progress is the same with the reference alone.

    rule        hypotheses of the group          actors/rewards/barl/hypotheses.py, beside the verifier
    policy      P[t, i] of each trajectory       actors/scoring/barl/scorer.py, on a scoring replica
    credit      belief.py: value of each step -> advantage of each token

Source: Zhang et al., Beyond Markovian, arXiv 2505.20561v2.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from system.algorithms.advantages import whitening
from system.algorithms.barl.belief import Belief, compute_belief
from system.algorithms.barl.metrics import BELIEF_METRICS, add_belief_metrics
from system.algorithms.barl.options import BarlOptions, ProgressOptions
from system.algorithms.barl.records import BeliefTrace, traces_of
from system.algorithms.base import (
    Algorithm,
    Context,
    Credit,
    Evidence,
    GroupCredit,
    HeatMap,
    HeatMapFigure,
    credit_by_token,
)
from system.algorithms.markovian import require_verdict_alone
from system.algorithms.rewards import CombinedRewards, is_right
from system.algorithms.steps import Float64Array, spread_to_tokens, step_advantages
from system.errors import ConfigError
from system.metrics import MetricSet
from system.records import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BeliefDetail:
    """The beliefs of one group, for metrics and figures."""

    beliefs: tuple[Belief, ...]  # G
    credit_seconds: float  # an equal share of what the batch took


class Barl(Algorithm):
    """A[t] = outcome + sum_i w_i[t] (P[S, i] - P[t, i]) on all tokens of step t, less a baseline."""

    Options: ClassVar[type] = BarlOptions
    metric_definitions = BELIEF_METRICS
    figure = HeatMapFigure(
        folder="beliefs",
        metric="belief/posteriors",
        column_axis="steps taken",
        colour_axis="weight of the hypothesis",
        key="each row a hypothesis; green: the reference answer; bold: what the completion stated",
    )

    def __init__(self, options: ProgressOptions, *, context: Context) -> None:
        super().__init__(options, context=context)
        self._options = options
        self._beta = options.beta if isinstance(options, BarlOptions) else 0.0

    @classmethod
    def check(cls, options: Any, *, weights: Mapping[str, float], normalise_terms: bool, task_name: str) -> None:
        require_verdict_alone(weights)
        options.check()
        if task_name == "code":
            raise ConfigError(
                "algorithm.name",
                given=cls.__name__.lower(),
                expected="grpo with task.name=code, as beliefs are over answers that can be compared",
                fix="algorithm.name=grpo",
            )

    @classmethod
    def evidence(cls, options: Any) -> Evidence:
        others = f" and at most {options.max_candidates} candidates" if options.max_candidates else ""
        return Evidence(
            by_rule="actors.rewards.barl.hypotheses:HypothesisFinder",
            by_policy="actors.scoring.barl.scorer:BeliefScorer",
            options=options,
            note=f"beliefs over the reference answer{others}",
            record=BeliefTrace,
        )

    def credit(self, groups: Sequence[ScoredGroup]) -> Credit:
        """Raises ValueError for a group without traces."""
        start = time.perf_counter()
        rewards = [self.rewards(group) for group in groups]
        traces = [traces_of(group) for group in groups]
        beliefs = [
            tuple(
                compute_belief(trace.answer_logprobs, is_right=is_right(group, index), beta=self._beta)
                for index, trace in enumerate(each)
            )
            for group, each in zip(groups, traces, strict=True)
        ]
        by_step = self._advantages(beliefs, rewards=rewards, traces=traces)
        credited = tuple(
            _credit_group(group, rewards=own, by_step=values, traces=each)
            for group, own, values, each in zip(groups, rewards, by_step, traces, strict=True)
        )
        seconds = (time.perf_counter() - start) / max(1, len(groups))
        return Credit(
            groups=credited, detail=tuple(BeliefDetail(beliefs=each, credit_seconds=seconds) for each in beliefs)
        )

    @classmethod
    def credits_groups_alone(cls, options: Any) -> bool:
        return bool(options.baseline != "batch")

    def _advantages(
        self,
        beliefs: Sequence[tuple[Belief, ...]],
        *,
        rewards: Sequence[CombinedRewards],
        traces: Sequence[tuple[BeliefTrace, ...]],
    ) -> list[list[Float64Array]]:
        """For each group and trajectory, float64[S]."""
        by_step = [
            step_advantages(
                [belief.step_values for belief in each],
                valid=own.valid,
                subtract_group_mean=self._options.baseline == "group_step",
            )
            for each, own in zip(beliefs, rewards, strict=True)
        ]
        if self._options.baseline != "batch":
            return by_step
        values = [each for group in by_step for each in group]
        counts = [
            np.diff(trace.step_ends, prepend=0) * is_valid
            for group, own in zip(traces, rewards, strict=True)
            for trace, is_valid in zip(group, own.valid, strict=True)
        ]
        mean, scale = whitening(np.concatenate(values), counts=np.concatenate(counts))
        return [
            [(each - mean) * scale if is_valid else each for each, is_valid in zip(group, own.valid, strict=True)]
            for group, own in zip(by_step, rewards, strict=True)
        ]

    def add_metrics(self, metrics: MetricSet, groups: Sequence[ScoredGroup], *, credit: Credit) -> None:
        for group, detail in zip(groups, credit.detail, strict=True):
            metrics.add("credit/advantages_seconds", detail.credit_seconds)
            add_belief_metrics(metrics, traces_of(group), beliefs=detail.beliefs)

    def heat_maps(self, groups: Sequence[ScoredGroup], *, credit: Credit, count: int) -> list[HeatMap]:
        """The posterior of the longest trajectory (most steps, then lowest index) of each of the first groups."""
        panels = []
        ordered = sorted(zip(groups, credit.detail, strict=True), key=lambda pair: pair[0].group_id)
        for group, detail in ordered[:count]:
            beliefs, traces = detail.beliefs, traces_of(group)
            index = max(range(len(beliefs)), key=lambda number: (len(beliefs[number].step_values), -number))
            stated = traces[index].stated
            panels.append(
                HeatMap(
                    title=f"group {group.group_id}, completion {index}",
                    subtitle=group.group.prompt.text,
                    values=beliefs[index].posterior.T.astype(np.float32),
                    row_labels=traces[index].hypotheses.answers,
                    bold_row=stated if stated >= 0 else None,
                )
            )
        return panels


def _credit_group(
    scored: ScoredGroup, *, rewards: CombinedRewards, by_step: Sequence[Float64Array], traces: Sequence[BeliefTrace]
) -> GroupCredit:
    advantages = [
        spread_to_tokens(values, step_ends=trace.step_ends, num_tokens=trajectory.num_sampled)
        for values, trace, trajectory in zip(by_step, traces, scored.group.trajectories, strict=True)
    ]
    return credit_by_token(scored.group, rewards=rewards, advantages=advantages)


ALGORITHM = Barl
