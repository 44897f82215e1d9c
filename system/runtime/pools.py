"""The worker pools of one configuration together: made, started, kept and taken down as one by the entry points."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from system.config.algorithms import evidence_of
from system.config.resources import ActorNeeds, actor_needs, uses_scoring_replicas
from system.config.schema import Config
from system.records import Prompt, Sampling, TrajectoryGroup
from system.runtime.actor_nodes import locate
from system.runtime.group_scoring import GroupScoring
from system.runtime.placement import Placement
from system.runtime.pool_member import PoolSettings
from system.runtime.worker_pool import WorkerPool
from system.runtime.worker_start import Admit

_FILLINGS = 2  # sequences that an engine is given, as a multiple of those it decodes at once: it never waits for us
_MAX_REWARD_GROUPS = 16  # scored by one call, because a call costs more than a check
_MAX_REPLICA_CALLS = 2  # so that a replica never idles and a load of weights never waits for more than that


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    rollouts: WorkerPool
    rewards: WorkerPool
    scoring: WorkerPool | None  # None: no reward needs the policy's weights

    def all(self) -> tuple[WorkerPool, ...]:
        return tuple(pool for pool in (self.rollouts, self.rewards, self.scoring) if pool is not None)

    def by_section(self) -> dict[str, WorkerPool]:
        """By the section of the configuration that a pool belongs to: rollout, reward, scorer."""
        return {pool.settings.section: pool for pool in self.all()}

    async def start(self) -> None:
        """Start all workers; those that receive weights are JOINING then. Raises WorkerDiedError."""
        async with asyncio.TaskGroup() as starts:
            for pool in self.all():
                starts.create_task(pool.start())

    @asynccontextmanager
    async def supervised(self, admit: Admit | None = None) -> AsyncIterator[None]:
        """Meanwhile lost workers are replaced; raises PoolExhaustedError, also into the body, when too many are."""
        async with asyncio.TaskGroup() as loops:
            supervising = [loops.create_task(pool.supervise(admit)) for pool in self.all()]
            yield
            for loop in supervising:
                loop.cancel()

    async def generate(
        self,
        prompt: Prompt,
        *,
        group_id: int,
        sampling: Sampling,
        on_start: Callable[[], None] | None = None,
        on_retry: Callable[[str], None] | None = None,
    ) -> TrajectoryGroup:
        """One group of completions. Raises PoisonedCallError, PoolExhaustedError."""
        group: TrajectoryGroup = await self.rollouts.call(
            "generate",
            prompt,
            group_id,
            sampling,
            what=f"generate group {group_id}",
            load=sampling.num_completions,
            on_start=on_start,
            on_retry=on_retry,
        )
        return group

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
            asks_for_evidence=evidence_of(config.algorithm) is not None,
        )

    def abandon_calls(self) -> None:
        """Nobody waits for an answer any more; workers stop what they were asked where they can."""
        for pool in self.all():
            pool.abandon_calls()

    async def shutdown(self, *, seconds: float) -> None:
        """Take all workers down. Never raises on a dead one."""
        await asyncio.gather(*(pool.shutdown(seconds=seconds) for pool in self.all()))


def make_pools(config: Config, *, placement: Placement, has_learner: bool = True) -> Pools:
    """The pools of this configuration, not started yet; without a learner all serve model.path as it is."""
    rollout, reward, scorer = config.rollout, config.reward, config.scorer
    needs = actor_needs(config)
    # Ray's client, which drives a cluster from outside, has no table of actors
    where = None if config.cluster.address.startswith("ray://") else locate
    rollouts = PoolSettings(
        kind="rollout worker",
        section="rollout",
        num_workers=rollout.num_workers,
        start_seconds=rollout.start_timeout_seconds,
        call_seconds=rollout.group_timeout_seconds,
        max_restarts=rollout.max_restarts,
        receives_weights=has_learner,
        ends_calls_first=rollout.on_new_weights == "finish",
        max_load=_FILLINGS * rollout.max_sequences,
        resources=_resources(needs["rollout worker"]),
    )
    rewards = PoolSettings(
        kind="reward worker",
        section="reward",
        num_workers=reward.num_workers,
        start_seconds=rollout.start_timeout_seconds,
        call_seconds=reward.group_timeout_seconds,
        max_restarts=reward.max_restarts,
        receives_weights=False,
        is_exclusive=True,
        max_load=1,
        max_calls_at_once=_MAX_REWARD_GROUPS,
        max_shared_attempts=1,
        resources=_resources(needs["reward worker"]),
    )
    scoring = PoolSettings(
        kind="scoring replica",
        section="scorer",
        num_workers=scorer.num_workers,
        start_seconds=scorer.start_timeout_seconds,
        call_seconds=scorer.group_timeout_seconds,
        max_restarts=scorer.max_restarts,
        receives_weights=has_learner and scorer.mode != "offline",
        is_exclusive=True,
        max_load=_MAX_REPLICA_CALLS,
        max_shared_attempts=1,
        resources=_resources(needs.get("scoring replica")),
    )
    return Pools(
        rollouts=WorkerPool(rollouts, create_actor=placement.create_rollout_actor, locate=where),
        rewards=WorkerPool(rewards, create_actor=placement.create_reward_actor, locate=where),
        scoring=WorkerPool(scoring, create_actor=placement.create_scoring_actor, locate=where)
        if uses_scoring_replicas(config)
        else None,
    )


def _resources(needs: ActorNeeds | None) -> dict[str, float]:
    """What one worker reserves, in Ray's words."""
    if needs is None:
        return {}
    return {kind: amount for kind, amount in (("CPU", needs.cpus), ("GPU", needs.gpus)) if amount}
