"""All scorers of a run over one finished group: reward workers (rules) and scoring replicas (the policy's weights).

score          rules ∥ replicas ─> one ScoredGroup with the terms of both
               rules ─> hypotheses ─> replicas, where beliefs are asked for
score_again    new terms from the replicas for a group whose scores come from weights that are too old
"""

import asyncio
from dataclasses import replace

from system.errors import WeightSyncError
from system.records import AnswerHypotheses, ScoredGroup, TrajectoryGroup
from system.runtime.worker_pool import WorkerPool


class GroupScoring:
    """`max_lag_versions` bounds how old the weights of a score may be at training; None: not at all (offline)."""

    def __init__(
        self,
        *,
        reward_pool: WorkerPool,
        scoring_pool: WorkerPool | None,
        max_lag_versions: int | None,
        asks_for_beliefs: bool = False,
    ) -> None:
        self._reward_pool = reward_pool
        self._scoring_pool = scoring_pool
        self._max_lag_versions = max_lag_versions
        self._asks_for_beliefs = asks_for_beliefs
        self.num_scored_again = 0

    async def score(self, group: TrajectoryGroup) -> ScoredGroup:
        """The group with one term of each scorer for each completion.

        Raises PoisonedCallError, PoolExhaustedError.
        """
        if self._scoring_pool is None:
            return await self.verify(group)
        if self._asks_for_beliefs:
            by_rule = await self.verify(group, with_hypotheses=True)
            by_policy = await self._by_policy(group, hypotheses=by_rule.hypotheses)
        else:
            by_policy_task = asyncio.ensure_future(self._by_policy(group))
            try:
                by_rule = await self.verify(group)
                by_policy = await by_policy_task
            finally:
                by_policy_task.cancel()
        terms = zip(by_rule.terms, by_policy.terms, strict=True)
        return replace(
            by_rule,
            terms=tuple(ruled + scored for ruled, scored in terms),
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
        scored = await self._by_policy(group.group, hypotheses=group.hypotheses)
        lag = lag_versions(scored, policy_version=policy_version)
        if lag > self._max_lag_versions:
            raise WeightSyncError(
                f"the scoring replicas are {lag} versions behind policy version {policy_version}, more than "
                f"scorer.max_lag_versions={self._max_lag_versions}, although they were synchronised"
            )
        new_terms = {term.scorer for term in scored.terms[0]}
        terms = (
            tuple(term for term in old if term.scorer not in new_terms) + new
            for old, new in zip(group.terms, scored.terms, strict=True)
        )
        return replace(group, terms=tuple(terms), belief_traces=scored.belief_traces)

    async def verify(self, group: TrajectoryGroup, *, with_hypotheses: bool = False) -> ScoredGroup:
        """The terms of the rules alone. Raises PoisonedCallError, PoolExhaustedError."""
        scored: ScoredGroup = await self._reward_pool.call(
            "score", group, with_hypotheses, what=f"verify group {group.group_id}"
        )
        return scored

    async def _by_policy(self, group: TrajectoryGroup, *, hypotheses: AnswerHypotheses | None = None) -> ScoredGroup:
        assert self._scoring_pool is not None
        scored: ScoredGroup = await self._scoring_pool.call(
            "score", group, hypotheses, what=f"score group {group.group_id}"
        )
        return scored


def lag_versions(group: ScoredGroup, *, policy_version: int) -> int:
    """How many versions the oldest weights that scored the group are behind; 0 when only rules did."""
    return max(policy_version - version for version in (scored_by(group) or {policy_version}))


def scored_by(group: ScoredGroup) -> set[int]:
    """Policy versions of the weights that scored the group; rules have none."""
    versions = {term.policy_version for row in group.terms for term in row if term.policy_version >= 0}
    return versions | {trace.policy_version for trace in group.belief_traces}
