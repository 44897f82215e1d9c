"""All scorers of a run over one finished group: reward workers (rules) and scoring replicas (the policy's weights).

score          rules ∥ replicas ─> one ScoredGroup with the terms of both
               rules ─> what they found ─> replicas, where the algorithm asks for evidence
score_again    new terms from the replicas for a group whose scores come from weights that are too old
"""

import asyncio
from dataclasses import replace

from system.errors import WeightSyncError
from system.records import GroupScores, ScoredGroup, TrajectoryGroup
from system.runtime.worker_pool import WorkerPool


class GroupScoring:
    """`max_lag_versions` bounds how old the weights of a score may be at training; None: not at all (offline)."""

    def __init__(
        self,
        *,
        reward_pool: WorkerPool,
        scoring_pool: WorkerPool | None,
        max_lag_versions: int | None,
        asks_for_evidence: bool = False,
    ) -> None:
        self._reward_pool = reward_pool
        self._scoring_pool = scoring_pool
        self._max_lag_versions = max_lag_versions
        self._asks_for_evidence = asks_for_evidence
        self.num_scored_again = 0

    async def score(self, group: TrajectoryGroup) -> ScoredGroup:
        """The group with one term of each scorer for each completion.

        Raises PoisonedCallError, PoolExhaustedError.
        """
        if self._scoring_pool is None:
            return await self.verify(group)
        if self._asks_for_evidence:
            by_rule = await self._by_rule(group, with_evidence=True)
            by_policy = await self._by_policy(group, evidence=by_rule.evidence)
        else:
            by_policy_task = asyncio.ensure_future(self._by_policy(group))
            try:
                by_rule = await self._by_rule(group)
                by_policy = await by_policy_task
            finally:
                by_policy_task.cancel()
        terms = zip(by_rule.terms, by_policy.terms, strict=True)
        return ScoredGroup(
            group=group, terms=tuple(ruled + scored for ruled, scored in terms), evidence=by_policy.evidence
        )

    def is_too_old(self, group: ScoredGroup, *, policy_version: int) -> bool:
        """Whether the scores come from weights that are too old to train `policy_version`."""
        if self._scoring_pool is None or self._max_lag_versions is None:
            return False
        return lag_versions(group, policy_version=policy_version) > self._max_lag_versions

    async def bring_up_to_date(self, group: ScoredGroup, *, policy_version: int) -> ScoredGroup:
        """`group` itself, or scored again when its scores are too old to train `policy_version`.

        Raises WeightSyncError when the replicas' weights are too old as well.
        """
        if not self.is_too_old(group, policy_version=policy_version):
            return group
        assert self._max_lag_versions is not None
        self.num_scored_again += 1
        scores = await self._by_policy(group.group, evidence=group.evidence)
        new_terms = {term.scorer for term in scores.terms[0]}
        terms = (
            tuple(term for term in old if term.scorer not in new_terms) + new
            for old, new in zip(group.terms, scores.terms, strict=True)
        )
        scored = replace(group, terms=tuple(terms), evidence=scores.evidence)
        lag = lag_versions(scored, policy_version=policy_version)
        if lag > self._max_lag_versions:
            raise WeightSyncError(
                f"the scoring replicas are {lag} versions behind policy version {policy_version}, more than "
                f"scorer.max_lag_versions={self._max_lag_versions}, although they were synchronised"
            )
        return scored

    async def verify(self, group: TrajectoryGroup) -> ScoredGroup:
        """The terms of the rules alone. Raises PoisonedCallError, PoolExhaustedError."""
        return ScoredGroup(group=group, terms=(await self._by_rule(group)).terms)

    async def _by_rule(self, group: TrajectoryGroup, *, with_evidence: bool = False) -> GroupScores:
        scores: GroupScores = await self._reward_pool.call(
            "score", group, with_evidence, what=f"verify group {group.group_id}"
        )
        return scores

    async def _by_policy(self, group: TrajectoryGroup, *, evidence: tuple[object, ...] | None = None) -> GroupScores:
        assert self._scoring_pool is not None
        scores: GroupScores = await self._scoring_pool.call(
            "score", group, evidence, what=f"score group {group.group_id}"
        )
        return scores


def lag_versions(group: ScoredGroup, *, policy_version: int) -> int:
    """How many versions the oldest weights that scored the group are behind; 0 when only rules did."""
    return max(policy_version - version for version in (scored_by(group) or {policy_version}))


def scored_by(group: ScoredGroup) -> set[int]:
    """Policy versions of the weights that scored the group; rules have none."""
    return {term.policy_version for row in group.terms for term in row if term.policy_version >= 0}
