"""Ray wrappers of the scoring replicas and reward workers: placement and nothing else.

Heavy imports happen in `__init__`, inside the actor's own process. The classes are plain here;
`system/runtime/placement.py` turns them into Ray actors with the resources that the config asks for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from system.config.imports import import_class
from system.config.machine import model_folder
from system.config.schema import BeliefConfig, ModelConfig, RewardConfig, ScorerConfig, TaskConfig
from system.config.scorers import scorer_place, terms_on
from system.interfaces import Scorer
from system.records import (
    AnswerHypotheses,
    BeliefTrace,
    ScoredGroup,
    TrajectoryGroup,
)
from system.weights.manifest import ReceiverStatus, WeightsManifest


class ScoringActor:
    """One replica of the policy and the scorers that share it; one call at a time, in the order of the calls."""

    def __init__(
        self,
        *,
        name: str,
        scorer: ScorerConfig,
        model: ModelConfig,
        rollout_temperature: float,
        scores_certainty: bool,
        task: TaskConfig,
        belief: BeliefConfig | None,
    ) -> None:
        """`belief` None: no beliefs are asked for; the task is used for them alone."""
        os.environ["OMP_NUM_THREADS"] = str(scorer.threads_per_worker)  # torch reads it once, at import
        self._name = name
        self._rollout_temperature = rollout_temperature
        self._config = scorer
        self._model_config = model
        self._scores_certainty = scores_certainty
        self._task_config = task
        self._belief_config = belief

    def start(self) -> int:
        """Load the model; it takes no rank of a weight group."""
        from actors.scoring.belief import BeliefScorer
        from actors.scoring.model import ScoringModel
        from actors.scoring.self_certainty import SelfCertaintyScorer
        from system.data.tasks import make_task

        model = self._model_config
        self._model = ScoringModel(
            name=self._name,
            config=self._config,
            model_path=str(model_folder(model.path) or model.path),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
        self._self_certainty: SelfCertaintyScorer | None = None
        self._belief: BeliefScorer | None = None
        if self._scores_certainty:
            self._self_certainty = SelfCertaintyScorer(
                self._model, temperature=self._config.temperature, rollout_temperature=self._rollout_temperature
            )
        if self._belief_config is not None:
            self._belief = BeliefScorer(
                self._model, task=make_task(self._task_config), reduction=self._belief_config.answer_reduction
            )
        return 0

    def score(self, group: TrajectoryGroup, hypotheses: AnswerHypotheses | None = None) -> ScoredGroup:
        """Terms of the scorers for each completion, none without scorers, and the traces of its beliefs."""
        terms = self._self_certainty.score(group) if self._self_certainty is not None else ()
        traces: tuple[BeliefTrace, ...] = ()
        if self._belief is not None and hypotheses is not None:
            traces = self._belief.traces(group, hypotheses=hypotheses)
        return ScoredGroup(
            group=group,
            terms=tuple((term,) for term in terms) or ((),) * len(group.trajectories),
            belief_traces=traces,
        )

    def take_logprob_difference(self) -> float | None:
        return None if self._self_certainty is None else self._self_certainty.take_logprob_difference()

    def load_weights(self, manifest: WeightsManifest, timeout_seconds: float) -> ReceiverStatus:
        return self._model.load_weights(manifest, timeout_seconds)

    def shutdown(self) -> None:
        """There is nothing to close."""


class RewardActor:
    """The scorers of one reward worker; scores several groups in one call, because a call costs more than a check."""

    def __init__(self, *, task: TaskConfig, reward: RewardConfig, max_candidates: int | None) -> None:
        """`max_candidates`: answers of a group that become hypotheses; None: no beliefs are asked for."""
        from actors.rewards.answer_verifier import AnswerVerifier
        from actors.rewards.hypotheses import HypothesisFinder
        from actors.rewards.value_scorer import ValueScorer
        from actors.rewards.worker import RewardWorker
        from system.data.tasks import make_task

        def answer_scorer(name: str) -> Scorer:
            kind = import_class(scorer_place(name, key="reward.terms").path, key="reward.terms", methods=("score",))
            scorer: Scorer = kind(
                task=make_task(task),
                num_processes=reward.processes_per_worker,
                timeout_seconds=reward.timeout_seconds,
                memory_limit_mib=reward.memory_limit_mib,
                timeout_is=reward.timeout_is,
                answer_after_thinking=reward.answer_after_thinking,
            )
            return scorer

        scorers: list[Scorer] = [
            answer_scorer(term.scorer) if term in terms_on(reward, "answers") else ValueScorer(term)
            for term in terms_on(reward, "answers", "values")
        ]
        verifier = next(scorer for scorer in scorers if isinstance(scorer, AnswerVerifier))
        finder = None if max_candidates is None else HypothesisFinder(verifier, max_candidates=max_candidates)
        self._worker = RewardWorker(scorers, hypothesis_finder=finder)

    def start(self) -> None:
        """Answers once the scorers are ready to score."""

    def score(self, groups: Sequence[tuple[TrajectoryGroup, bool]]) -> list[ScoredGroup]:
        """Each group with the terms of its completions, and with hypotheses where that is asked for."""
        return [self._worker.score(group, with_hypotheses=with_hypotheses) for group, with_hypotheses in groups]

    def shutdown(self) -> None:
        self._worker.close()
