"""From credited groups to training samples. Pure; called by the controller's train loop."""

from collections.abc import Sequence

import numpy as np

from system.algorithms.base import GroupCredit
from system.records import BoolArray, FloatArray, ScoredGroup, TrainingSample, Trajectory


def make_samples(scored: ScoredGroup, *, credit: GroupCredit) -> list[TrainingSample]:
    """One for each trajectory with a valid reward."""
    group = scored.group
    members = zip(group.trajectories, credit.advantages, credit.in_loss, credit.valid, strict=True)
    return [
        make_sample(trajectory, group_id=group.group_id, advantages=advantages, in_loss=in_loss)
        for trajectory, advantages, in_loss, is_valid in members
        if is_valid
    ]


def make_batch_samples(groups: Sequence[ScoredGroup], *, credit: Sequence[GroupCredit]) -> list[TrainingSample]:
    """Those of all groups of a batch, in their order."""
    by_group = (make_samples(group, credit=own) for group, own in zip(groups, credit, strict=True))
    return [sample for samples in by_group for sample in samples]


def make_sample(trajectory: Trajectory, *, group_id: int, advantages: FloatArray, in_loss: BoolArray) -> TrainingSample:
    """A trajectory as it is trained on: the loss is on its sampled tokens, of those on the ones in `in_loss` bool[L].

    `advantages` float32[L]; those of tokens that were not sampled are left out. Raises ValueError for other shapes.
    """
    shape = trajectory.token_ids.shape
    if advantages.shape != shape or in_loss.shape != shape:
        raise ValueError(
            f"advantages and in_loss must have the shape of token_ids {shape}, got {advantages.shape} "
            f"and {in_loss.shape}"
        )
    return TrainingSample(
        group_id=group_id,
        token_ids=trajectory.token_ids,
        loss_mask=trajectory.is_sampled & in_loss,
        rollout_logprobs=trajectory.logprobs,
        advantages=np.where(trajectory.is_sampled, advantages, np.float32(0.0)),
        min_policy_version=trajectory.min_policy_version,
    )


def require_fresh(groups: Sequence[ScoredGroup], *, policy_version: int, max_staleness: int) -> None:
    """Every sampled token is of `policy_version`, or of at most `max_staleness` versions before it, by its stamp.

    Asserted, because the group buffer sees to it.
    """
    for scored in groups:
        for trajectory in scored.group.trajectories:
            versions = trajectory.sampled_policy_versions
            if len(versions):
                oldest, newest = int(versions.min()), int(versions.max())
                assert policy_version - max_staleness <= oldest <= newest <= policy_version, (
                    f"group {scored.group_id}, completion {trajectory.index} has tokens of policy versions {oldest} to "
                    f"{newest}, which policy version {policy_version} may not be trained on: max_staleness is "
                    f"{max_staleness}"
                )


def staleness(groups: Sequence[ScoredGroup], *, policy_version: int) -> list[int]:
    """For each group, how many versions its oldest sampled token is behind the policy that is about to be trained."""
    return [policy_version - scored.group.min_policy_version for scored in groups]
