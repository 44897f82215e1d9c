"""From scored groups to training samples: rewards become advantages, advantages are written over tokens.

Pure functions between the reward workers and the packed batch; called by the controller's train loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from system.algorithms.advantages import Baseline, group_advantages
from system.algorithms.rewards import CombinedRewards, combine_rewards
from system.records import Completion, FloatArray, Prompt, ScoredGroup, TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredSamples:
    """What a group becomes. Completions without a valid reward make no sample."""

    group: ScoredGroup
    rewards: CombinedRewards  # [G]
    advantages: FloatArray  # float32[G]
    samples: tuple[TrainingSample, ...]  # one for each valid completion


def make_samples(
    group: ScoredGroup, *, reward_weights: Mapping[str, float], baseline: Baseline, normalise_std: bool
) -> ScoredSamples:
    """GRPO: one advantage for each completion, the same on all its tokens."""
    rewards = combine_rewards(group.rewards, weights=reward_weights)
    advantages = group_advantages(rewards.values, valid=rewards.valid, baseline=baseline, normalise_std=normalise_std)
    samples = tuple(
        make_sample(group.group_id, prompt=group.prompt, completion=completion, advantage=float(advantage))
        for completion, advantage, is_valid in zip(group.completions, advantages, rewards.valid, strict=True)
        if is_valid
    )
    return ScoredSamples(group=group, rewards=rewards, advantages=advantages, samples=samples)


def make_sample(group_id: int, *, prompt: Prompt, completion: Completion, advantage: float) -> TrainingSample:
    """Prompt and completion end to end, L = P + T; the loss is on the T completion tokens."""
    num_prompt, num_completion = len(prompt.token_ids), len(completion.token_ids)
    on_prompt = np.zeros(num_prompt, np.float32)
    return TrainingSample(
        group_id=group_id,
        token_ids=np.concatenate((prompt.token_ids, completion.token_ids)).astype(np.int32),
        loss_mask=np.arange(num_prompt + num_completion) >= num_prompt,
        rollout_logprobs=np.concatenate((on_prompt, completion.rollout_logprobs)).astype(np.float32),
        advantages=np.concatenate((on_prompt, np.full(num_completion, advantage, np.float32))),
        min_policy_version=int(completion.policy_versions.versions.min()),
    )


def staleness(groups: Sequence[ScoredGroup], *, policy_version: int) -> list[int]:
    """For each group, how many versions its oldest token is behind the policy that is about to be trained."""
    return [
        policy_version - min(int(completion.policy_versions.versions.min()) for completion in group.completions)
        for group in groups
    ]
