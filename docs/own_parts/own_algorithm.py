"""An algorithm of one's own: only the best of a group is pushed up, the others not at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from system.algorithms.base import Algorithm, Context, Credit, credit_by_trajectory
from system.fields import key
from system.metrics import MetricDefinition, MetricSet
from system.records import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfGroupOptions:
    margin: float = key("How much a reward has to lie above the group's mean.", 0.0, minimum=0)


class BestOfGroup(Algorithm):
    Options = BestOfGroupOptions
    metric_definitions = (MetricDefinition(name="own/num_pushed", description="Completions.", reduction="sum"),)

    def __init__(self, options: Any, *, context: Context) -> None:
        super().__init__(options, context=context)
        self._margin = options.margin

    def credit(self, groups: Sequence[ScoredGroup]) -> Credit:
        credits = []
        for group in groups:
            rewards = self.rewards(group)
            mean = rewards.values[rewards.valid].mean()
            is_best = rewards.valid & (rewards.values == rewards.values[rewards.valid].max())
            is_best &= rewards.values > mean + self._margin
            credits.append(credit_by_trajectory(group.group, rewards=rewards, advantages=is_best.astype(np.float32)))
        return Credit(groups=tuple(credits))

    def add_metrics(self, metrics: MetricSet, groups: Sequence[ScoredGroup], *, credit: Credit) -> None:
        for group in credit.groups:
            metrics.add("own/num_pushed", sum(bool(values.any()) for values in group.advantages))
