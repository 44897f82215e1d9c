"""What an algorithm is: one object that turns the scored groups of a batch into an advantage for each token.

A built-in algorithm is one file of this folder (or of a folder in it) that sets ALGORITHM to its class; its name is
that of the file. A user's own is a subclass of `Algorithm` anywhere, named `package.module:Name`. Numpy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from system.algorithms.rewards import CombinedRewards, combine_rewards
from system.fields import NoOptions
from system.interfaces import Task
from system.metrics import MetricDefinition, MetricSet
from system.records import BoolArray, FloatArray, ScoredGroup, TrajectoryGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What an algorithm is given of the run."""

    weights: Mapping[str, float]  # of the reward terms, by the label of their scorer
    normalise_terms: bool
    task: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an algorithm asks of each group beside its reward terms, as import paths of the classes that gather it.

    `by_rule`, made of (verifier, options), finds something in a reward worker, right after the verifier; a scoring
    replica hands that to `by_policy`, a scorer made of (model, task, options). Nobody but the algorithm reads either.
    `record` is of plain values, arrays and tuples of them (see system/data/record_columns.py).
    """

    by_rule: str
    by_policy: str
    options: Any
    note: str  # for the plan that a run prints
    record: type | None = None  # dataclass of what `by_policy` gives; None: the flight recorder leaves it out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupCredit:
    """What each of the G trajectories of a group earns. Advantages are 0 where a token was not sampled."""

    rewards: FloatArray  # float32[G], meaningless where not valid
    valid: BoolArray  # bool[G]; the others make no training sample
    advantages: tuple[FloatArray, ...]  # G of float32[L]
    in_loss: tuple[BoolArray, ...]  # G of bool[L], sampled tokens that are trained on


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Credit:
    groups: tuple[GroupCredit, ...]  # as the groups that were given
    detail: tuple[Any, ...] = ()  # the algorithm's own, for its metrics and figures


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeatMap:
    """One panel of a figure; rows go down, columns to the right."""

    title: str
    subtitle: str  # of which the end of the last line is shown
    values: FloatArray  # float[rows, columns], 0 .. 1
    row_labels: tuple[str, ...]
    bold_row: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMapFigure:
    """What a figure of heat maps is called: its folder in the run folder, its name at the tracker, its axes."""

    folder: str
    metric: str
    column_axis: str
    colour_axis: str
    key: str  # what rows, the green first one and a bold one are


class Algorithm:
    """A subclass defines `credit`, which sees the batch; everything else has a default."""

    Options: ClassVar[type] = NoOptions
    metric_definitions: ClassVar[tuple[MetricDefinition, ...]] = ()
    figure: ClassVar[HeatMapFigure | None] = None
    min_completions: ClassVar[int] = 2  # of a prompt: 2 where they are compared with each other

    def __init__(self, options: Any, *, context: Context) -> None:
        """Raises ConfigError when the task cannot serve this algorithm."""
        self._context = context

    @classmethod
    def check(cls, options: Any, *, weights: Mapping[str, float], normalise_terms: bool, task_name: str) -> None:
        """Raises ConfigError for what the configuration asks of this algorithm in vain."""

    @classmethod
    def credits_groups_alone(cls, options: Any) -> bool:
        """Whether a group's advantages are the same whatever else is in the batch (batch.portions needs it)."""
        return False

    @classmethod
    def evidence(cls, options: Any) -> Evidence | None:
        """What is asked of each group beside its reward terms."""
        return None

    def refusal(self, group: ScoredGroup) -> str | None:
        """Why a group is dropped and replaced by another one, as a short fixed code; None keeps it."""
        return None if self.rewards(group).valid.any() else "no_valid_reward"

    def credit(self, groups: Sequence[ScoredGroup]) -> Credit:
        """The advantages of a batch."""
        raise NotImplementedError

    def add_metrics(self, metrics: MetricSet, groups: Sequence[ScoredGroup], *, credit: Credit) -> None:
        """What the algorithm has to say about the batch, under `metric_definitions`."""

    def heat_maps(self, groups: Sequence[ScoredGroup], *, credit: Credit, count: int) -> list[HeatMap]:
        """At most `count` panels of `figure`."""
        return []

    def rewards(self, group: ScoredGroup) -> CombinedRewards:
        """One reward for each trajectory: the weighted sum of its terms."""
        return combine_rewards(
            group.terms, weights=self._context.weights, normalise_terms=self._context.normalise_terms
        )


def credit_by_trajectory(group: TrajectoryGroup, *, rewards: CombinedRewards, advantages: FloatArray) -> GroupCredit:
    """`advantages` float[G], the same on all sampled tokens of a trajectory."""
    return GroupCredit(
        rewards=rewards.values,
        valid=rewards.valid,
        advantages=tuple(
            np.where(trajectory.is_sampled, np.float32(advantage), np.float32(0.0))
            for trajectory, advantage in zip(group.trajectories, advantages, strict=True)
        ),
        in_loss=tuple(trajectory.is_sampled for trajectory in group.trajectories),
    )


def credit_by_token(
    group: TrajectoryGroup,
    *,
    rewards: CombinedRewards,
    advantages: Sequence[FloatArray],
    in_loss: Sequence[BoolArray] | None = None,
) -> GroupCredit:
    """`advantages` G of float[num_sampled], `in_loss` G of bool[num_sampled] (None: all), over the sampled tokens."""
    trajectories = group.trajectories
    kept = in_loss or [np.ones(trajectory.num_sampled, dtype=np.bool_) for trajectory in trajectories]
    return GroupCredit(
        rewards=rewards.values,
        valid=rewards.valid,
        advantages=tuple(
            trajectory.at_sampled(values) for trajectory, values in zip(trajectories, advantages, strict=True)
        ),
        in_loss=tuple(
            trajectory.at_sampled(values.astype(np.float32)) > 0.0
            for trajectory, values in zip(trajectories, kept, strict=True)
        ),
    )
