"""Self-certainty as a reward: how far the policy's next-token distributions are from uniform, by its own weights.

Source: Zhao et al., Learning to Reason without External Rewards, arXiv 2505.19590; Kang et al., arXiv 2502.18581.
"""

import time
from collections.abc import Sequence

import numpy as np

from actors.scoring.model import ScoringModel, TrajectoryStatistics
from system.records import RewardTerm, TrajectoryGroup


class SelfCertaintyScorer:
    """Scorer whose value is the mean over the trajectory's sampled tokens, EOS included, of KL(U || p), in nats.

    KL(U || p) = logsumexp(z) - mean_j(z_j) - log V, at the position that predicts the token; z are the logits
    divided by `temperature`. The term's policy_version is that of the replica's weights. `model` is shared with
    other scorers and closed by its owner.
    """

    name = "self_certainty"

    def __init__(self, model: ScoringModel, *, temperature: float, rollout_temperature: float) -> None:
        self._model = model
        self._temperature = temperature
        self._is_comparable = temperature == rollout_temperature
        self._logprob_differences: list[float] = []

    def score(self, group: TrajectoryGroup) -> tuple[RewardTerm, ...]:
        """One term for each trajectory; invalid (`empty`) where nothing was sampled. `seconds` is an equal share."""
        start = time.perf_counter()
        statistics = self._model.trajectory_statistics(group, temperature=self._temperature)
        seconds = (time.perf_counter() - start) / len(group.trajectories)
        self._compare_with_engine(group, statistics)
        return tuple(
            RewardTerm(
                scorer=self.name,
                value=float(each.self_certainty.mean()) if len(each.self_certainty) else 0.0,
                status="ok" if len(each.self_certainty) else "invalid",
                reason="scored" if len(each.self_certainty) else "empty",
                policy_version=self._model.policy_version,
                seconds=seconds,
            )
            for each in statistics
        )

    def take_logprob_difference(self) -> float | None:
        """Largest difference in nats between the log-probabilities here and the engine's, since the last call.

        Over trajectories that the scoring version itself wrote, at the same temperature; None when there were none.
        """
        differences, self._logprob_differences = self._logprob_differences, []
        return max(differences, default=None)

    def _compare_with_engine(self, group: TrajectoryGroup, statistics: Sequence[TrajectoryStatistics]) -> None:
        if not self._is_comparable or self._model.is_average:  # no engine draws from an average
            return
        for trajectory, each in zip(group.trajectories, statistics, strict=True):
            is_own = (trajectory.sampled_policy_versions == self._model.policy_version).all()
            if is_own and len(each.logprobs):
                difference = np.abs(each.logprobs - trajectory.logprobs[trajectory.is_sampled])
                self._logprob_differences.append(float(difference.max()))

    def close(self) -> None:
        """The model belongs to the actor."""
