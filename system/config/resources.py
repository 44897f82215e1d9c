"""How many actors of each kind a configuration starts, and what each reserves of the cluster.

Read by the checks before anything starts, by the plan that --dry-run prints, and by the placement.
"""

from dataclasses import dataclass
from typing import Literal

from system.config.algorithms import evidence_of
from system.config.schema import Config, Device
from system.config.scorers import terms_on

ActorKind = Literal["rollout worker", "scoring replica", "learner rank", "reward worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorNeeds:
    """`count` actors of one kind; CPUs and GPUs are those of one."""

    kind: ActorKind
    count: int
    device: Device
    cpus: float
    gpus: float
    count_key: str  # the configuration key that says how many


def uses_scoring_replicas(config: Config) -> bool:
    """Whether a reward or the algorithm needs the policy's own weights."""
    return bool(terms_on(config.reward, "policy")) or evidence_of(config.algorithm) is not None


def actor_needs(config: Config) -> dict[ActorKind, ActorNeeds]:
    """Every kind of actor that a training run of `config` starts."""
    rollout, scorer, learner, reward = config.rollout, config.scorer, config.learner, config.reward
    needs = [
        ActorNeeds(
            kind="rollout worker",
            count=rollout.num_workers,
            device=rollout.device,
            cpus=rollout.cpus_per_worker,
            gpus=rollout.tensor_parallel_size if rollout.device == "cuda" else 0,
            count_key="rollout.num_workers",
        ),
        ActorNeeds(
            kind="learner rank",
            count=learner.num_ranks,
            device=learner.device,
            cpus=learner.cpus_per_rank,
            gpus=1 if learner.device == "cuda" else 0,
            count_key="learner.num_ranks",
        ),
        ActorNeeds(
            kind="reward worker",
            count=reward.num_workers,
            device="cpu",
            cpus=reward.cpus_per_worker,
            gpus=0,
            count_key="reward.num_workers",
        ),
    ]
    if uses_scoring_replicas(config):
        replicas = ActorNeeds(
            kind="scoring replica",
            count=scorer.num_workers,
            device=scorer.device,
            cpus=scorer.cpus_per_worker,
            gpus=scorer.gpus_per_worker if scorer.device == "cuda" else 0,
            count_key="scorer.num_workers",
        )
        needs.insert(1, replicas)
    return {need.kind: need for need in needs}
