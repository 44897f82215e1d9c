"""RLOO: a trajectory's reward less the mean of the others of its group; nothing is divided.

Source: Ahmadian et al., Back to Basics, arXiv 2402.14740, equation 9 (REINFORCE Leave-One-Out).
"""

from collections.abc import Sequence
from typing import Any

from system.algorithms.advantages import group_advantages
from system.algorithms.base import Algorithm, Credit, credit_by_trajectory
from system.records import ScoredGroup


class Rloo(Algorithm):
    """A_i = r_i - (1 / (n - 1)) sum_{j != i} r_j, over the n valid members of a group."""

    @classmethod
    def credits_groups_alone(cls, options: Any) -> bool:
        return True

    def credit(self, groups: Sequence[ScoredGroup]) -> Credit:
        rewards = [self.rewards(group) for group in groups]
        return Credit(
            groups=tuple(
                credit_by_trajectory(
                    group.group,
                    rewards=each,
                    advantages=group_advantages(
                        each.values, valid=each.valid, baseline="leave_one_out", normalise_std=False
                    ),
                )
                for group, each in zip(groups, rewards, strict=True)
            )
        )


ALGORITHM = Rloo
