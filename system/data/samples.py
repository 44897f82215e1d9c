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
from system.records import BeliefTrace, BoolArray, FloatArray, ScoredGroup, TrainingSample, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredSamples:
    """What a group becomes. Trajectories without a valid reward make no sample."""

    scored: ScoredGroup
    rewards: CombinedRewards  # [G]
    advantages: tuple[FloatArray, ...]  # G of float32[L], 0 where not sampled
    samples: tuple[TrainingSample, ...]  # one for each valid trajectory
    beliefs: tuple[Belief, ...] = ()  # G where there are traces


def make_samples(
    scored: ScoredGroup,
    *,
    reward_weights: Mapping[str, float],
    baseline: Baseline,
    normalise_std: bool,
    normalise_terms: bool = False,
) -> ScoredSamples:
    """GRPO: one advantage for each trajectory, the same on all its sampled tokens."""
    rewards = combine_rewards(scored.terms, weights=reward_weights, normalise_terms=normalise_terms)
    scalars = group_advantages(
        rewards.values, valid=rewards.valid, baseline=baseline, normalise_std=normalise_std and not normalise_terms
    )
    advantages = tuple(
        np.where(trajectory.is_sampled, advantage, np.float32(0.0))
        for trajectory, advantage in zip(scored.group.trajectories, scalars, strict=True)
    )
    return _scored_samples(scored, rewards=rewards, advantages=advantages)


def make_belief_samples(
    scored: ScoredGroup, *, reward_weights: Mapping[str, float], belief: BeliefConfig
) -> ScoredSamples:
    """BARL and Progress: one advantage for each step, the same on all its tokens. The group has belief traces."""
    rewards = combine_rewards(scored.terms, weights=reward_weights)
    beliefs = tuple(trace_belief(trace, config=belief) for trace in scored.belief_traces)
    by_step = step_advantages(
        [each.step_values for each in beliefs], valid=rewards.valid, subtract_group_mean=belief.subtract_group_mean
    )
    advantages = tuple(
        trajectory.at_sampled(spread_to_tokens(values, step_ends=trace.step_ends, num_tokens=trajectory.num_sampled))
        for values, trace, trajectory in zip(by_step, scored.belief_traces, scored.group.trajectories, strict=True)
    )
    return _scored_samples(scored, rewards=rewards, advantages=advantages, beliefs=beliefs)


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
    scored: ScoredGroup,
    *,
    reward_weights: Mapping[str, float],
    belief: BeliefConfig,
    task: StepwiseTask,
    hypotheses: Sequence[str],
) -> ScoredSamples:
    """BARL over `hypotheses` of which the task knows what they pay, or, without any, Markovian RL.

    A sampled token is a step. Markovian RL has nothing to learn behind the payment: those tokens are not in the loss.
    Raises ValueError for a trajectory whose text has another length than its sampled tokens.
    """
    rewards = combine_rewards(scored.terms, weights=reward_weights)
    values, in_loss = [], []
    for trajectory in scored.group.trajectories:
        if len(trajectory.text) != trajectory.num_sampled:
            given = f"{len(trajectory.text)} characters, {trajectory.num_sampled} sampled tokens"
            raise ValueError(f"a token has to be a step, got a trajectory of {given}")
        truth = task.payments(trajectory.text, hypothesis=scored.group.prompt.reference_answer)
        pays = [task.payments(trajectory.text, hypothesis=hypothesis) for hypothesis in hypotheses]
        by_hypothesis = np.stack(pays, axis=1) if pays else np.zeros((len(truth), 0), dtype=np.bool_)
        values.append(environment_values(truth, pays=by_hypothesis, discount=belief.discount, beta=belief.beta))
        in_loss.append(np.ones_like(truth) if hypotheses else is_unpaid(truth))
    by_step = step_advantages(values, valid=rewards.valid, subtract_group_mean=belief.subtract_group_mean)
    trajectories = scored.group.trajectories
    advantages = tuple(
        trajectory.at_sampled(each.astype(np.float32)) for trajectory, each in zip(trajectories, by_step, strict=True)
    )
    masks = [
        trajectory.at_sampled(each.astype(np.float32)) > 0.0
        for trajectory, each in zip(trajectories, in_loss, strict=True)
    ]
    return _scored_samples(scored, rewards=rewards, advantages=advantages, in_loss=masks)


def _scored_samples(
    scored: ScoredGroup,
    *,
    rewards: CombinedRewards,
    advantages: tuple[FloatArray, ...],
    beliefs: tuple[Belief, ...] = (),
    in_loss: Sequence[BoolArray] | None = None,
) -> ScoredSamples:
    group = scored.group
    masks = in_loss or [trajectory.is_sampled for trajectory in group.trajectories]
    samples = tuple(
        make_sample(trajectory, group_id=group.group_id, advantages=values, in_loss=mask)
        for trajectory, values, mask, is_valid in zip(group.trajectories, advantages, masks, rewards.valid, strict=True)
        if is_valid
    )
    return ScoredSamples(scored=scored, rewards=rewards, advantages=advantages, samples=samples, beliefs=beliefs)


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


def staleness(groups: Sequence[ScoredGroup], *, policy_version: int) -> list[int]:
    """For each group, how many versions its oldest sampled token is behind the policy that is about to be trained."""
    return [policy_version - scored.group.min_policy_version for scored in groups]
