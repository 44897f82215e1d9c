"""GRPO: a trajectory is worth how much better it did than its group. Dr. GRPO and DAPO are settings of it.

Sources: Shao et al., DeepSeekMath, arXiv 2402.03300 (GRPO); Liu et al., Understanding R1-Zero-Like Training, arXiv
2503.20783 (Dr. GRPO: deviation none, and a constant loss denominator); Yu et al., DAPO, arXiv 2503.14476 (dynamic
sampling); TRL's `scale_rewards="batch"` (deviation of the batch).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from system.algorithms.advantages import Baseline, group_advantages, reward_deviation
from system.algorithms.base import Algorithm, Context, Credit, credit_by_trajectory
from system.errors import ConfigError
from system.fields import key
from system.records import ScoredGroup

EPSILON = 1e-6  # in units of the reward


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoOptions:
    baseline: Baseline = key("What is subtracted from a reward: the group's mean, or that of the others.", "mean")
    deviation: Literal["group", "batch", "none"] | None = key(
        "Divide by the standard deviation of the group, of the whole batch, or not at all (Dr. GRPO); null: group, or "
        "none where reward.normalise_terms has divided each term already.",
        None,
    )
    drop_without_spread: bool = key(
        "Groups whose trajectories all earn the same are dropped and replaced by others (DAPO's dynamic sampling).",
        False,
    )


class Grpo(Algorithm):
    """A_i = (r_i - mean_j r_j) / (std + epsilon), over the valid members of a group; see `group_advantages`."""

    Options = GrpoOptions

    def __init__(self, options: GrpoOptions, *, context: Context) -> None:
        super().__init__(options, context=context)
        self._options = options
        self._deviation = options.deviation or ("none" if context.normalise_terms else "group")

    @classmethod
    def check(cls, options: Any, *, weights: Mapping[str, float], normalise_terms: bool, task_name: str) -> None:
        if normalise_terms and options.deviation == "group":
            raise ConfigError(
                "algorithm.options.deviation",
                given="group",
                expected="batch, none or null with reward.normalise_terms, as a group's deviation would divide the "
                "mixture a second time",
                fix="remove it, or algorithm.options.deviation=batch",
            )

    @classmethod
    def credits_groups_alone(cls, options: Any) -> bool:
        return bool(options.deviation != "batch")

    def refusal(self, group: ScoredGroup) -> str | None:
        reason = super().refusal(group)
        if reason is None and self._options.drop_without_spread:
            rewards = self.rewards(group)
            return "no_spread" if np.ptp(rewards.values[rewards.valid]) == 0.0 else None
        return reason

    def credit(self, groups: Sequence[ScoredGroup]) -> Credit:
        rewards = [self.rewards(group) for group in groups]
        divisor = 1.0
        if self._deviation == "batch":
            divisor = reward_deviation([each.values[each.valid] for each in rewards]) + EPSILON
        return Credit(
            groups=tuple(
                credit_by_trajectory(
                    group.group,
                    rewards=each,
                    advantages=group_advantages(
                        each.values,
                        valid=each.valid,
                        baseline=self._options.baseline,
                        normalise_std=self._deviation == "group",
                        epsilon=EPSILON,
                    )
                    / np.float32(divisor),
                )
                for group, each in zip(groups, rewards, strict=True)
            )
        )


ALGORITHM = Grpo
