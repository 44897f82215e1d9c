"""All scorers of a run over one finished group: reward workers (rules) and scoring replicas (the policy's weights).

score          rules ∥ replicas ─> one ScoredGroup with the terms of both
               rules ─> hypotheses ─> replicas, where beliefs are asked for
score_again    new terms from the replicas for a group whose scores come from weights that are too old
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace

from system.errors import WeightSyncError
from system.records import CompletionGroup, ScoredGroup
from system.runtime.reward_pool import RewardPool
from system.runtime.scoring_pool import ScoringPool


class GroupScoring:
    """`max_lag_versions` bounds how old the weights of a score may be at training; None: not at all (offline)."""

    def __init__(
        self,
        *,
        reward_pool: RewardPool,
        scoring_pool: ScoringPool | None,
        max_lag_versions: int | None,
        asks_for_beliefs: bool = False,
    ) -> None:
        self._reward_pool = reward_pool
        self._scoring_pool = scoring_pool
        self._max_lag_versions = max_lag_versions
        self._asks_for_beliefs = asks_for_beliefs
        self.num_scored_again = 0

    async def score(self, group: CompletionGroup) -> ScoredGroup:
        """The group with one term of each scorer for each completion. Raises DeadlineError."""
        if self._scoring_pool is None:
            return await self._reward_pool.score(group)
        if self._asks_for_beliefs:
            by_rule = await self._reward_pool.score(group, with_hypotheses=True)
            by_policy = await self._scoring_pool.score(group, hypotheses=by_rule.hypotheses)
        else:
            by_rule, by_policy = await _both(self._reward_pool.score(group), self._scoring_pool.score(group))
        rewards = zip(by_rule.rewards, by_policy.rewards, strict=True)
        return replace(
            by_rule,
            rewards=tuple(ruled + scored for ruled, scored in rewards),
            belief_traces=by_policy.belief_traces,
        )

    async def bring_up_to_date(self, group: ScoredGroup, *, policy_version: int) -> ScoredGroup:
        """`group` itself, or scored again when its scores are too old to train `policy_version`.

        Raises WeightSyncError when the replicas' weights are too old as well.
        """
        if self._scoring_pool is None or self._max_lag_versions is None:
            return group
        if lag_versions(group, policy_version=policy_version) <= self._max_lag_versions:
            return group
        self.num_scored_again += 1
        completed = CompletionGroup(group_id=group.group_id, prompt=group.prompt, completions=group.completions)
        scored = await self._scoring_pool.score(completed, hypotheses=group.hypotheses)
        lag = lag_versions(scored, policy_version=policy_version)
        if lag > self._max_lag_versions:
            raise WeightSyncError(
                f"the scoring replicas are {lag} versions behind policy version {policy_version}, more than "
                f"scorer.max_lag_versions={self._max_lag_versions}, although they were synchronised"
            )
        new_terms = {term.scorer for term in scored.rewards[0]}
        rewards = (
            tuple(term for term in old if term.scorer not in new_terms) + new
            for old, new in zip(group.rewards, scored.rewards, strict=True)
        )
        return replace(group, rewards=tuple(rewards), belief_traces=scored.belief_traces)


async def _both(
    by_rule: Coroutine[None, None, ScoredGroup], by_policy: Coroutine[None, None, ScoredGroup]
) -> tuple[ScoredGroup, ScoredGroup]:
    async with asyncio.TaskGroup() as tasks:
        ruled, scored = tasks.create_task(by_rule), tasks.create_task(by_policy)
    return ruled.result(), scored.result()


def lag_versions(group: ScoredGroup, *, policy_version: int) -> int:
    """How many versions the oldest weights that scored the group are behind; 0 when only rules did."""
    return max(policy_version - version for version in (scored_by(group) or {policy_version}))


def scored_by(group: ScoredGroup) -> set[int]:
    """Policy versions of the weights that scored the group; rules have none."""
    versions = {term.policy_version for row in group.rewards for term in row if term.policy_version >= 0}
    return versions | {trace.policy_version for trace in group.belief_traces}
