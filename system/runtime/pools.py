"""The worker pools of one configuration together: made, started and taken down as one thing by the entry points."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from system.config.resources import uses_beliefs, uses_scoring_replicas
from system.config.schema import Config
from system.runtime.group_scoring import GroupScoring
from system.runtime.placement import Placement
from system.runtime.reward_pool import RewardPool
from system.runtime.rollout_pool import RolloutPool
from system.runtime.scoring_pool import ScoringPool
from system.runtime.worker_pool import WorkerPool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    rollouts: RolloutPool
    rewards: RewardPool
    scoring: ScoringPool | None  # None: no reward needs the policy's weights

    async def start(self, config: Config) -> None:
        """Start all workers; those that receive weights are JOINING then. Raises WorkerDiedError, DeadlineError."""
        async with asyncio.TaskGroup() as starts:
            starts.create_task(self.rewards.start())
            for _ in range(config.rollout.num_workers):
                starts.create_task(self.rollouts.start_worker())
            if self.scoring is not None:
                for _ in range(config.scorer.num_workers):
                    starts.create_task(self.scoring.start_worker())

    def receivers(self) -> tuple[WorkerPool, ...]:
        """The pools that every weight sync reaches."""
        return tuple(pool for pool in (self.rollouts, self.scoring) if pool is not None and pool.receives_weights)

    def group_scoring(self, config: Config) -> GroupScoring:
        """All scorers of the configuration as one."""
        scorer = config.scorer
        max_lag = scorer.max_lag_versions
        if max_lag is None and scorer.mode != "offline":
            max_lag = config.controller.max_staleness + scorer.lag_versions
        return GroupScoring(
            reward_pool=self.rewards,
            scoring_pool=self.scoring,
            max_lag_versions=max_lag,
            asks_for_beliefs=uses_beliefs(config),
        )

    async def shutdown(self, *, seconds: float) -> None:
        """Take all workers down. Never raises on a dead one."""
        await asyncio.gather(
            self.rollouts.shutdown(seconds=seconds),
            self.rewards.shutdown(seconds=seconds),
            *(pool.shutdown(seconds=seconds) for pool in [self.scoring] if pool is not None),
        )


def make_pools(config: Config, *, placement: Placement, has_learner: bool = True) -> Pools:
    """The pools of this configuration, not started yet; without a learner all serve model.path as it is."""
    scoring = ScoringPool(
        create_actor=placement.create_scoring_actor,
        start_seconds=config.scorer.start_timeout_seconds,
        group_seconds=config.scorer.group_timeout_seconds,
        max_restarts=config.scorer.max_restarts,
        receives_weights=has_learner and config.scorer.mode != "offline",
    )
    return Pools(
        rollouts=RolloutPool(
            create_actor=placement.create_rollout_actor,
            start_seconds=config.rollout.start_timeout_seconds,
            group_seconds=config.rollout.group_timeout_seconds,
            max_restarts=config.rollout.max_restarts,
            receives_weights=has_learner,
        ),
        rewards=RewardPool(
            create_actor=placement.create_reward_actor,
            num_workers=config.reward.num_workers,
            start_seconds=config.rollout.start_timeout_seconds,
            group_seconds=config.reward.group_timeout_seconds,
        ),
        scoring=scoring if uses_scoring_replicas(config) else None,
    )
