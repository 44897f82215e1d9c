"""Scored tokens/s of two scoring replicas over those of one, through the pool that a run uses.

    replica_speedup = tokens/s with two replicas / tokens/s with one

Two pools of the demo's policy take turns on the same groups (32 groups of 16 completions of 128 random tokens, as much
as a step of the demo at its longest). Each replica has one thread, so a machine with two idle cores should come close
to 2. Medians over rounds, after a warm-up round. No arguments; about a minute on two cores.
"""

import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from system.config.load import load_config  # noqa: E402
from system.config.schema import Config  # noqa: E402
from system.records import FloatArray, PolicyVersions, Prompt, Trajectory, TrajectoryGroup  # noqa: E402

NUM_ROUNDS = 7
NUM_GROUPS, NUM_COMPLETIONS, PROMPT_TOKENS, COMPLETION_TOKENS = 32, 16, 48, 128
VOCABULARY = 32  # of the demo's policy


def make_groups() -> list[TrajectoryGroup]:
    rng = np.random.default_rng(0)

    length = PROMPT_TOKENS + COMPLETION_TOKENS
    is_sampled = np.arange(length) >= PROMPT_TOKENS

    def make_group(group_id: int) -> TrajectoryGroup:
        token_ids = rng.integers(3, VOCABULARY, (NUM_COMPLETIONS, length)).astype(np.int32)
        token_ids[:, :PROMPT_TOKENS] = token_ids[0, :PROMPT_TOKENS]
        return TrajectoryGroup(
            group_id=group_id,
            prompt=Prompt(
                prompt_id=str(group_id),
                token_ids=token_ids[0, :PROMPT_TOKENS],
                text="",
                reference_answer="",
                task="gsm8k_chains",
            ),
            trajectories=tuple(
                Trajectory(
                    index=index,
                    token_ids=row,
                    is_sampled=is_sampled,
                    logprobs=np.zeros(length, np.float32),
                    policy_versions=PolicyVersions(starts=np.array([0], np.int32), versions=np.array([-1], np.int32)),
                    text="",
                    finish_reason="length",
                )
                for index, row in enumerate(token_ids)
            ),
        )

    return [make_group(group_id) for group_id in range(NUM_GROUPS)]


async def measure(config: Config) -> dict[int, list[float]]:
    """Tokens/s of each round, by number of replicas."""
    from system.runtime.placement import Placement
    from system.runtime.pools import make_pools
    from system.runtime.worker_pool import WorkerPool

    groups = make_groups()
    num_tokens = NUM_GROUPS * NUM_COMPLETIONS * (PROMPT_TOKENS + COMPLETION_TOKENS)
    pools: dict[int, WorkerPool] = {}
    certainty: dict[int, FloatArray] = {}
    rates: dict[int, list[float]] = {1: [], 2: []}
    try:
        for num_replicas in (1, 2):
            pool = make_pools(config, placement=Placement(config=config), has_learner=False).scoring
            assert pool is not None
            pools[num_replicas] = pool
            pool.resize(num_replicas)
            await pool.start()
        for number in range(1 + NUM_ROUNDS):
            # taking turns who goes first: whatever else the machine does hits both
            for num_replicas in (1, 2) if number % 2 else (2, 1):
                start = time.perf_counter()
                scored = await asyncio.gather(
                    *(pools[num_replicas].call("score", group, None, what="score") for group in groups)
                )
                if number:
                    rates[num_replicas].append(num_tokens / (time.perf_counter() - start))
                certainty[num_replicas] = np.array([[row[0].value for row in group.terms] for group in scored])
    finally:
        await asyncio.gather(*(pool.shutdown(seconds=5.0) for pool in pools.values()))
    assert np.array_equal(certainty[1], certainty[2]), "the scores depend on the number of replicas"
    return rates


def main() -> None:
    import os

    import ray

    from system.runtime.placement import start_ray

    config = load_config(
        [ROOT / "configs" / "demo.yaml"],
        [
            "reward.terms=[{scorer: verifier}, {scorer: self_certainty, weight: 0}]",
            "scorer.num_workers=2",
            "scorer.cpus_per_worker=0.25",
        ],
    )
    start_ray(config)
    try:
        rates = asyncio.run(measure(config))
    finally:
        ray.shutdown()
    one, two = (statistics.median(rates[num_replicas]) for num_replicas in (1, 2))
    print(f"{NUM_ROUNDS} rounds of {NUM_GROUPS} groups x {NUM_COMPLETIONS} completions on {os.cpu_count()} CPUs")
    print(f"one replica  {one:10,.0f} tokens/s")
    print(f"two replicas {two:10,.0f} tokens/s")
    figures = {
        "benchmark": "scoring_replicas",
        "replica_speedup": round(two / one, 3),
        "tokens_per_second_one": round(one),
        "tokens_per_second_two": round(two),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
