"""Where each actor runs: starts or joins Ray, checks that the cluster can hold the run, creates the actors.

Called by system/commands/train.py and by the pools when they replace a worker.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.rewards.worker import RewardWorker
from actors.rollout.worker import RolloutWorker
from actors.scoring.worker import ScoringWorker
from learner.worker import LearnerWorker
from system.config.algorithms import evidence_of
from system.config.machine import joins_cluster, model_folder
from system.config.resources import actor_needs
from system.config.schema import Config
from system.config.scorers import terms_on
from system.errors import ConfigError
from system.runtime.temporary_folder import use_short_temporary_folder

ActorHandle = Any  # Ray's handles are proxies without a static type
# calls of a learner rank that are answered beside the others, which run one at a time
CHECKPOINT_GROUP, LIVENESS_GROUP = "checkpoint", "liveness"


def start_ray(config: Config) -> None:
    """Start Ray on this machine or join the cluster. Raises ConfigError when there is no cluster to join."""
    # Ray's uv hook would try to rebuild the environment on each worker
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not joins_cluster(config.cluster):
        shorter = use_short_temporary_folder()
        if shorter is not None:
            print(f"TMPDIR is too long for the sockets of Ray: {shorter} is used instead.", file=sys.stderr)
        ray.init(
            address="local", include_dashboard=False, log_to_driver=False, logging_level="WARNING",
            num_cpus=os.cpu_count(),
        )  # fmt: skip
        return
    try:
        ray.init(address=config.cluster.address, log_to_driver=False, logging_level="WARNING")
    except ConnectionError as error:
        raise ConfigError(
            "cluster.address",
            given=config.cluster.address,
            expected=f"a running Ray cluster ({error})",
            fix="start one with 'ray start --head', submit with 'ray job submit', or use cluster.address=local",
        ) from error


def check_cluster_holds(config: Config) -> None:
    """Raise ConfigError, naming the keys, when the cluster as it is can never place the run's actors."""
    needs = actor_needs(config).values()
    available = ray.cluster_resources()
    cpus = sum(need.count * need.cpus for need in needs)
    gpus = sum(need.count * need.gpus for need in needs)
    for kind, wanted in (("CPU", cpus), ("GPU", gpus)):
        if wanted > available.get(kind, 0.0) + 1e-6:
            raise ConfigError(
                " / ".join(need.count_key for need in needs),
                given=f"actors that need {wanted:g} {kind}s",
                expected=f"at most the {available.get(kind, 0.0):g} {kind}s of the Ray cluster",
                fix="fewer workers or ranks, fewer CPUs per worker, or a larger cluster",
            )


async def shut_down_actors(
    actors: Sequence[ActorHandle], *, seconds: float, kill: Callable[[ActorHandle], None] = ray.kill
) -> None:
    """Let each actor's `shutdown` end its processes, then kill what is left. Never raises on a dead actor."""
    calls = [asyncio.ensure_future(actor.shutdown.remote()) for actor in actors]
    if calls:
        await asyncio.wait(calls, timeout=seconds)
    for call in calls:
        if not call.cancel() and not call.cancelled():
            call.exception()  # read, so that asyncio does not warn about it
    for actor in actors:
        kill(actor)


class Placement:
    """Creates this run's actors with the resources of the config."""

    def __init__(self, *, config: Config) -> None:
        self._config = config
        self._needs = actor_needs(config)
        self._learner_group: PlacementGroup | None = None

    def create_rollout_actor(self, name: str) -> ActorHandle:
        needs = self._needs["rollout worker"]
        actor = ray.remote(RolloutWorker).options(
            num_cpus=needs.cpus, num_gpus=needs.gpus, max_concurrency=10_000, max_restarts=0
        )
        model = self._config.model
        return actor.remote(
            name=name,
            config=self._config.rollout,
            model_path=model.path,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            run_seed=self._config.run.seed,
        )

    def create_scoring_actor(self, name: str) -> ActorHandle:
        needs = self._needs["scoring replica"]
        actor = ray.remote(ScoringWorker).options(num_cpus=needs.cpus, num_gpus=needs.gpus, max_restarts=0)
        return actor.remote(
            name=name,
            scorer=self._config.scorer,
            model=self._config.model,
            rollout_temperature=self._config.rollout.temperature,
            terms=terms_on(self._config.reward, "policy"),
            task=self._config.task,
            evidence=evidence_of(self._config.algorithm),
        )

    def create_reward_actor(self, name: str) -> ActorHandle:
        needs = self._needs["reward worker"]
        actor = ray.remote(RewardWorker).options(num_cpus=needs.cpus, max_restarts=0)
        return actor.remote(
            task=self._config.task, reward=self._config.reward, evidence=evidence_of(self._config.algorithm)
        )

    def create_learner_actors(self) -> list[ActorHandle]:
        """One actor a rank, packed on as few nodes as hold them; later groups take the place of the first one."""
        config, model = self._config.learner, self._config.model
        needs = self._needs["learner rank"]
        bundle = {"CPU": needs.cpus} | ({"GPU": needs.gpus} if needs.gpus else {})
        if self._learner_group is None:  # given back between two groups, others might take it
            self._learner_group = placement_group([bundle] * config.num_ranks, strategy="PACK")
        return [
            # concurrency groups are no option of `.options`
            ray.remote(concurrency_groups={CHECKPOINT_GROUP: 1, LIVENESS_GROUP: 1})(LearnerWorker)
            .options(
                num_cpus=needs.cpus,
                num_gpus=needs.gpus,
                max_restarts=0,
                # torch reads it once, at import
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(config.threads_per_rank)}},
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._learner_group, placement_group_bundle_index=rank
                ),
            )
            .remote(
                rank=rank,
                num_ranks=config.num_ranks,
                config=config,
                loss=self._config.loss,
                model_path=str(model_folder(model.path) or model.path),
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
                num_updates=self._config.run.num_updates,
                optimizer_steps=self._config.batch.optimizer_steps,
                temperature=self._config.rollout.temperature,
            )
            for rank in range(config.num_ranks)
        ]
