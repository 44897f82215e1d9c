"""Markovian RL where the task says at which step the true answer pays: the discounted reward to go, and nothing else.

Letters: S steps, one sampled token each. Source: the Markovian baseline of Zhang et al., Beyond Markovian, arXiv
2505.20561v2, whose published text gives no discount, network or optimiser for this task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from system.algorithms.base import Algorithm, Context, Credit, GroupCredit, credit_by_token
from system.algorithms.steps import step_advantages
from system.errors import ConfigError
from system.fields import key
from system.interfaces import StepwiseTask
from system.records import BoolArray, ScoredGroup, Trajectory

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkovianOptions:
    discount: float = key("Discount of a reward for each step that it is away.", 0.98, above=0, maximum=1)
    subtract_group_mean: bool = key("Subtract what the group is worth at the same relative step.", True)


class Markovian(Algorithm):
    """A[t] = Q[t] less the group's mean at step t. Behind the payment nothing is left to learn: not in the loss."""

    Options = MarkovianOptions

    def __init__(self, options: Any, *, context: Context) -> None:
        super().__init__(options, context=context)
        if not isinstance(context.task, StepwiseTask):
            raise ConfigError(
                "task.name",
                given=context.task.name,
                expected="a task that says at which step an answer pays (it has the method payments)",
                fix="task.name=triplets, or another algorithm.name",
            )
        self._task: StepwiseTask = context.task
        self._options = options

    @classmethod
    def check(cls, options: Any, *, weights: Mapping[str, float], normalise_terms: bool, task_name: str) -> None:
        require_verdict_alone(weights)

    @classmethod
    def credits_groups_alone(cls, options: Any) -> bool:
        return True

    def credit(self, groups: Sequence[ScoredGroup]) -> Credit:
        """Raises ValueError for a trajectory whose text has another length than its sampled tokens."""
        return Credit(groups=tuple(self._credit_group(group) for group in groups))

    def step_values(self, trajectory: Trajectory, *, truth: BoolArray) -> Float64Array:
        """V[t] of one trajectory, float64[S]; `truth` bool[S] says where the true answer pays."""
        return discounted_first_payment(truth & is_unpaid(truth), discount=self._options.discount)

    def trained_steps(self, truth: BoolArray) -> BoolArray:
        """bool[S]: the steps that are in the loss."""
        return is_unpaid(truth)

    def payments(self, trajectory: Trajectory, *, answer: str) -> BoolArray:
        """bool[S]: whether step t would be rewarded if `answer` were right."""
        if len(trajectory.text) != trajectory.num_sampled:
            given = f"{len(trajectory.text)} characters, {trajectory.num_sampled} sampled tokens"
            raise ValueError(f"a token has to be a step, got a trajectory of {given}")
        return self._task.payments(trajectory.text, answer=answer)

    def _credit_group(self, scored: ScoredGroup) -> GroupCredit:
        group, rewards = scored.group, self.rewards(scored)
        truths = [self.payments(each, answer=group.prompt.reference_answer) for each in group.trajectories]
        values = [
            self.step_values(trajectory, truth=truth)
            for trajectory, truth in zip(group.trajectories, truths, strict=True)
        ]
        by_step = step_advantages(values, valid=rewards.valid, subtract_group_mean=self._options.subtract_group_mean)
        return credit_by_token(
            group,
            rewards=rewards,
            advantages=[values.astype(np.float32) for values in by_step],
            in_loss=[self.trained_steps(truth) for truth in truths],
        )


def require_verdict_alone(weights: Mapping[str, float]) -> None:
    """Raises ConfigError unless the verifier's verdict is the only weighted term, as credit by step wants it."""
    reason = "with this algorithm, whose only reward is the verifier's verdict"
    for scorer, weight in weights.items():
        given = f"{weight:g} x {scorer}"
        if scorer == "verifier" and weight <= 0:
            raise ConfigError("reward.terms", given=given, expected=f"a weight above 0 {reason}", fix="weight: 1")
        if scorer != "verifier" and weight != 0:
            raise ConfigError(
                "reward.terms", given=given, expected=f"weight 0, which only monitors, {reason}", fix="weight: 0"
            )


def discounted_first_payment(pays: BoolArray, *, discount: float) -> Float64Array:
    """Value to go when the first payment at or after a step is the only one.

        Q[t] = discount^(t* - t), t* the first step >= t with pays[t*]; 0 where there is none

    Args:
        pays: bool[S, ...]; steps first.
        discount: 0 < discount <= 1.

    Returns:
        float64 of the same shape, 0 .. 1.

    Raises:
        ValueError: another dtype, no step axis, or a discount out of range.
    """
    check_payments(pays)
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"discount must be above 0 and at most 1, got {discount}")
    values = np.zeros(pays.shape, dtype=np.float64)
    to_go = np.zeros(pays.shape[1:], dtype=np.float64)
    for step in range(len(pays) - 1, -1, -1):
        to_go = np.where(pays[step], 1.0, discount * to_go)
        values[step] = to_go
    return values


def is_unpaid(truth: BoolArray) -> BoolArray:
    """bool[S]: whether the ground truth had paid nothing before the step; the paying step itself counts."""
    check_payments(truth)
    paid_before = np.zeros(truth.shape, dtype=np.bool_)
    paid_before[1:] = np.logical_or.accumulate(truth)[:-1]
    return ~paid_before


def check_payments(pays: BoolArray) -> None:
    """Raises ValueError unless payments are bool with steps first."""
    if pays.ndim < 1 or pays.dtype != np.bool_:
        raise ValueError(f"payments must be bool with steps first, got {pays.dtype}{pays.shape}")


ALGORITHM = Markovian
