"""A scoring replica: one copy of the policy and the scorers that share it; one call at a time, in the order of calls.

Heavy imports happen in `start`, inside the worker's own process. Made remote by system/runtime/placement.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from system.config.imports import import_class
from system.config.machine import model_folder
from system.config.schema import ModelConfig, RewardTermConfig, ScorerConfig, TaskConfig
from system.config.scorers import scorer_place
from system.records import GroupScores, TrajectoryGroup
from system.stack_signal import catch_stack_signal
from system.weights.manifest import ReceiverStatus, WeightsManifest

if TYPE_CHECKING:
    from system.algorithms.base import Evidence


class ScoringWorker:
    """Its scorers are those of `terms`, and that of the algorithm's `evidence`; the task is for the latter alone."""

    def __init__(
        self,
        *,
        name: str,
        scorer: ScorerConfig,
        model: ModelConfig,
        rollout_temperature: float,
        terms: Sequence[RewardTermConfig],
        task: TaskConfig,
        evidence: Evidence | None,
    ) -> None:
        os.environ["OMP_NUM_THREADS"] = str(scorer.threads_per_worker)  # torch reads it once, at import
        self._name = name
        self._rollout_temperature = rollout_temperature
        self._config = scorer
        self._model_config = model
        self._terms = tuple(terms)
        self._task_config = task
        self._evidence = evidence

    def start(self) -> int:
        """Load the model; it takes no rank of a weight group."""
        catch_stack_signal()
        from actors.scoring.model import ScoringModel
        from system.data.tasks import make_task

        model = self._model_config
        self._model = ScoringModel(
            name=self._name,
            config=self._config,
            model_path=str(model_folder(model.path) or model.path),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
        )
        self._scorers = [self._make_scorer(term) for term in self._terms]
        self._gatherer: Any = None
        if self._evidence is not None:
            kind = import_class(self._evidence.by_policy, key="algorithm.name", methods=("score",))
            task = make_task(self._task_config)
            self._gatherer = kind(self._model, task=task, options=self._evidence.options)
        return 0

    def _make_scorer(self, term: RewardTermConfig) -> Any:
        kind = import_class(scorer_place(term.scorer, key="reward.terms").path, key="reward.terms", methods=("score",))
        temperature = self._config.temperature
        return kind(self._model, temperature=temperature, rollout_temperature=self._rollout_temperature)

    def score(self, group: TrajectoryGroup, evidence: Sequence[object] | None = None) -> GroupScores:
        """One term of each scorer for each trajectory, and what the algorithm asks for if a rule found something."""
        columns = [scorer.score(group) for scorer in self._scorers]
        terms = tuple(zip(*columns, strict=True)) if columns else ((),) * len(group.trajectories)
        if self._gatherer is None or evidence is None:
            return GroupScores(terms=terms, evidence=None)
        gathered: GroupScores = self._gatherer.score(group, evidence)
        return GroupScores(
            terms=tuple(own + more for own, more in zip(terms, gathered.terms, strict=True)), evidence=gathered.evidence
        )

    def load_weights(self, manifest: WeightsManifest, timeout_seconds: float) -> ReceiverStatus:
        return self._model.load_weights(manifest, timeout_seconds)

    def shutdown(self) -> None:
        """There is nothing to close."""

    def take_logprob_difference(self) -> float | None:
        """The largest difference to the engines' log-probabilities that a scorer has seen since the last call."""
        takers = [scorer for scorer in self._scorers if hasattr(scorer, "take_logprob_difference")]
        differences = [scorer.take_logprob_difference() for scorer in takers]
        return max((difference for difference in differences if difference is not None), default=None)
