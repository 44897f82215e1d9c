"""From scored groups to training samples: rewards become advantages, advantages are written over tokens.

Pure functions between the reward workers and the packed batch; called by the controller's train loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from system.algorithms.advantages import Baseline, group_advantages
from system.algorithms.belief import Belief, compute_belief, spread_to_tokens, step_advantages
from system.algorithms.environment_belief import environment_values, is_unpaid
from system.algorithms.rewards import CombinedRewards, combine_rewards
from system.config.schema import BeliefConfig
from system.interfaces import StepwiseTask
from system.records import BeliefTrace, BoolArray, Completion, FloatArray, Prompt, ScoredGroup, TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredSamples:
    """What a group becomes. Completions without a valid reward make no sample."""

    group: ScoredGroup
    rewards: CombinedRewards  # [G]
    advantages: tuple[FloatArray, ...]  # G of float32[T]
    samples: tuple[TrainingSample, ...]  # one for each valid completion
    beliefs: tuple[Belief, ...] = ()  # G where there are traces


def make_samples(
    group: ScoredGroup,
    *,
    reward_weights: Mapping[str, float],
    baseline: Baseline,
    normalise_std: bool,
    normalise_terms: bool = False,
) -> ScoredSamples:
    """GRPO: one advantage for each completion, the same on all its tokens."""
    rewards = combine_rewards(group.rewards, weights=reward_weights, normalise_terms=normalise_terms)
    scalars = group_advantages(
        rewards.values, valid=rewards.valid, baseline=baseline, normalise_std=normalise_std and not normalise_terms
    )
    advantages = tuple(
        np.full(len(completion.token_ids), advantage, np.float32)
        for completion, advantage in zip(group.completions, scalars, strict=True)
    )
    return _scored_samples(group, rewards=rewards, advantages=advantages)


def make_belief_samples(
    group: ScoredGroup, *, reward_weights: Mapping[str, float], belief: BeliefConfig
) -> ScoredSamples:
    """BARL and Progress: one advantage for each step, the same on all its tokens. The group has belief traces."""
    rewards = combine_rewards(group.rewards, weights=reward_weights)
    beliefs = tuple(trace_belief(trace, config=belief) for trace in group.belief_traces)
    by_step = step_advantages(
        [each.step_values for each in beliefs], valid=rewards.valid, subtract_group_mean=belief.subtract_group_mean
    )
    advantages = tuple(
        spread_to_tokens(values, step_ends=trace.step_ends, num_tokens=len(completion.token_ids))
        for values, trace, completion in zip(by_step, group.belief_traces, group.completions, strict=True)
    )
    return _scored_samples(group, rewards=rewards, advantages=advantages, beliefs=beliefs)


def trace_belief(trace: BeliefTrace, *, config: BeliefConfig) -> Belief:
    """What the policy's answers after each step amount to, under the configuration of the run."""
    return compute_belief(
        trace.answer_logprobs,
        outcomes=trace.outcomes,
        beta=config.beta,
        normalise_weights=config.normalise_weights,
        reference_weight=config.reference_weight,
    )


def make_environment_samples(
    group: ScoredGroup,
    *,
    reward_weights: Mapping[str, float],
    belief: BeliefConfig,
    task: StepwiseTask,
    hypotheses: Sequence[str],
) -> ScoredSamples:
    """BARL over `hypotheses` of which the task knows what they pay, or, without any, Markovian RL.

    A token is a step. Markovian RL has nothing to learn behind the payment: those tokens are not in the loss.
    Raises ValueError for a completion whose text has another length than its tokens.
    """
    rewards = combine_rewards(group.rewards, weights=reward_weights)
    values, in_loss = [], []
    for completion in group.completions:
        if len(completion.text) != len(completion.token_ids):
            given = f"{len(completion.text)} characters, {len(completion.token_ids)} tokens"
            raise ValueError(f"a token has to be a step, got a completion of {given}")
        truth = task.payments(completion.text, hypothesis=group.prompt.reference_answer)
        pays = [task.payments(completion.text, hypothesis=hypothesis) for hypothesis in hypotheses]
        by_hypothesis = np.stack(pays, axis=1) if pays else np.zeros((len(truth), 0), dtype=np.bool_)
        values.append(environment_values(truth, pays=by_hypothesis, discount=belief.discount, beta=belief.beta))
        in_loss.append(np.ones_like(truth) if hypotheses else is_unpaid(truth))
    by_step = step_advantages(values, valid=rewards.valid, subtract_group_mean=belief.subtract_group_mean)
    advantages = tuple(each.astype(np.float32) for each in by_step)
    return _scored_samples(group, rewards=rewards, advantages=advantages, in_loss=in_loss)


def _scored_samples(
    group: ScoredGroup,
    *,
    rewards: CombinedRewards,
    advantages: tuple[FloatArray, ...],
    beliefs: tuple[Belief, ...] = (),
    in_loss: Sequence[BoolArray] | None = None,
) -> ScoredSamples:
    masks = in_loss or [np.ones(len(each), dtype=np.bool_) for each in advantages]
    samples = tuple(
        make_sample(group.group_id, prompt=group.prompt, completion=completion, advantages=values, in_loss=mask)
        for completion, values, mask, is_valid in zip(group.completions, advantages, masks, rewards.valid, strict=True)
        if is_valid
    )
    return ScoredSamples(group=group, rewards=rewards, advantages=advantages, samples=samples, beliefs=beliefs)


def make_sample(
    group_id: int, *, prompt: Prompt, completion: Completion, advantages: FloatArray, in_loss: BoolArray
) -> TrainingSample:
    """Prompt and completion end to end, L = P + T; the loss is on completion tokens, those of `in_loss` bool[T]."""
    num_prompt = len(prompt.token_ids)
    on_prompt = np.zeros(num_prompt, np.float32)
    return TrainingSample(
        group_id=group_id,
        token_ids=np.concatenate((prompt.token_ids, completion.token_ids)).astype(np.int32),
        loss_mask=np.concatenate((np.zeros(num_prompt, np.bool_), in_loss)),
        rollout_logprobs=np.concatenate((on_prompt, completion.rollout_logprobs)).astype(np.float32),
        advantages=np.concatenate((on_prompt, advantages)),
        min_policy_version=int(completion.policy_versions.versions.min()),
    )


def staleness(groups: Sequence[ScoredGroup], *, policy_version: int) -> list[int]:
    """For each group, how many versions its oldest token is behind the policy that is about to be trained."""
    return [
        policy_version - min(int(completion.policy_versions.versions.min()) for completion in group.completions)
        for group in groups
    ]
