"""REINFORCE++: the reward on every token, whitened over all sampled tokens of the batch; no group is compared.

Source: Hu et al., REINFORCE++, arXiv 2501.03262, section 3 (advantage normalisation over the global batch), and
OpenRLHF and verl, where mean and deviation are over tokens. KL belongs to the loss here, not to the reward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from system.algorithms.advantages import whitening
from system.algorithms.base import Algorithm, Context, Credit, credit_by_trajectory
from system.fields import key
from system.records import ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforcePlusPlusOptions:
    subtract_group_mean: bool = key(
        "Subtract the group's mean before whitening (REINFORCE++-baseline), for several completions of a prompt.", False
    )


class ReinforcePlusPlus(Algorithm):
    """A_i = (r_i - mean r) / (std r + 1e-8), mean and std over all sampled tokens of valid trajectories."""

    Options = ReinforcePlusPlusOptions
    min_completions = 1

    def __init__(self, options: ReinforcePlusPlusOptions, *, context: Context) -> None:
        super().__init__(options, context=context)
        self._subtract_group_mean = options.subtract_group_mean

    def credit(self, groups: Sequence[ScoredGroup]) -> Credit:
        rewards = [self.rewards(group) for group in groups]
        values = [each.values.astype(np.float64) for each in rewards]
        if self._subtract_group_mean:
            values = [
                own - own[each.valid].mean() if each.valid.any() else own
                for own, each in zip(values, rewards, strict=True)
            ]
        lengths = [
            np.array([trajectory.num_sampled for trajectory in group.group.trajectories]) * each.valid
            for group, each in zip(groups, rewards, strict=True)
        ]
        mean, scale = whitening(np.concatenate(values), counts=np.concatenate(lengths))
        return Credit(
            groups=tuple(
                credit_by_trajectory(
                    group.group, rewards=each, advantages=np.where(each.valid, (own - mean) * scale, 0.0)
                )
                for group, each, own in zip(groups, rewards, values, strict=True)
            )
        )


ALGORITHM = ReinforcePlusPlus
