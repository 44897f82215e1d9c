"""Groups per second through admit, generate, score and credit with real Ray actors that have nothing to do.

    admit     GroupBuffer.lease
    generate  Pools.generate ─> an actor that answers with 16 trajectories of 4,096 tokens and their text
    score     GroupScoring.score ─> reward actors that say right and wrong in turn
    credit    BatchPreparation: GRPO's credit, packing, statistics; then the groups are trained and a version published

Everything between the actors is what a run uses; engines, verifiers and learner take no time. The baseline is two bare
Ray calls a group, with the same payload, the same actors and as many groups in flight, and nothing else:

    groups_over_bare = groups/s through the control plane / groups/s of bare calls

Both take turns with 1 to 64 rollout actors; figures are medians over rounds. Then one long run of up to 20,000 groups
says whether the cost of a group and the memory of the driver stay what they are. CPU seconds are those of the driver
process, which a busy machine does not change. No arguments; less than five minutes on two cores.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from system.config.load import load_config  # noqa: E402
from system.config.schema import Config  # noqa: E402
from system.records import (  # noqa: E402
    GroupScores,
    OptimizerStep,
    PolicyVersions,
    Prompt,
    RewardTerm,
    Sampling,
    Trajectory,
    TrajectoryGroup,
)

NUM_WORKERS = (1, 8, 64)
NUM_REWARD_WORKERS = 2
NUM_ROUNDS = 3
ROUND_GROUPS, MOST_GROUPS = 320, 20_000
ROUND_SECONDS, LONG_SECONDS = 8.0, 80.0
PROMPTS_PER_STEP, NUM_COMPLETIONS, NUM_TOKENS, PROMPT_TOKENS, VOCABULARY = 32, 16, 4096, 64, 50_000
MAX_STALENESS = 3


class EchoRollout:
    """Answers every prompt with the same trajectories, as fast as Ray carries them; `seed` is the policy version."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        words = rng.integers(97, 123, (NUM_COMPLETIONS, 4 * NUM_TOKENS)).astype(np.uint8)
        words[:, ::5] = ord(" ")
        self._trajectories = tuple(
            Trajectory(
                index=index,
                token_ids=rng.integers(3, VOCABULARY, NUM_TOKENS).astype(np.int32),
                is_sampled=np.arange(NUM_TOKENS) >= PROMPT_TOKENS,
                logprobs=rng.normal(size=NUM_TOKENS).astype(np.float32),
                policy_versions=PolicyVersions(starts=np.array([0], np.int32), versions=np.array([0], np.int32)),
                text=words[index].tobytes().decode(),
                finish_reason="stop",
            )
            for index in range(NUM_COMPLETIONS)
        )

    async def start(self) -> int:
        return 1

    async def generate(self, prompt: Prompt, group_id: int, sampling: Sampling) -> TrajectoryGroup:
        versions = PolicyVersions(starts=np.array([0], np.int32), versions=np.array([sampling.seed], np.int32))
        trajectories = tuple(replace(each, policy_versions=versions) for each in self._trajectories)
        return TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=trajectories)

    async def shutdown(self) -> None: ...


class EchoReward:
    """Right and wrong in turn."""

    def start(self) -> None: ...

    def score(self, groups: Sequence[tuple[TrajectoryGroup, bool]]) -> list[GroupScores]:
        return [
            GroupScores(terms=tuple((_term(index),) for index in range(len(group.trajectories))), evidence=None)
            for group, _ in groups
        ]

    def shutdown(self) -> None: ...


def _term(index: int) -> RewardTerm:
    value = float(index % 2)
    return RewardTerm(scorer="verifier", value=value, status="ok", reason="exact", policy_version=-1, seconds=0.0)


class Actors:
    """The actors of all measurements; each pool gets the first of them that it asks for."""

    def __init__(self) -> None:
        import ray

        rollout = ray.remote(EchoRollout).options(num_cpus=0, max_concurrency=10_000)
        reward = ray.remote(EchoReward).options(num_cpus=0)
        self.rollouts = [rollout.remote() for _ in range(max(NUM_WORKERS))]
        self.rewards = [reward.remote() for _ in range(NUM_REWARD_WORKERS)]
        ray.get([actor.start.remote() for actor in (*self.rollouts, *self.rewards)])


class Handles:
    """In place of the placement: hands out actors that exist."""

    def __init__(self, actors: Actors) -> None:
        self._rollouts, self._rewards = iter(actors.rollouts), iter(actors.rewards)

    def create_rollout_actor(self, name: str) -> Any:
        return next(self._rollouts)

    def create_reward_actor(self, name: str) -> Any:
        return next(self._rewards)

    def create_scoring_actor(self, name: str) -> Any:
        raise AssertionError("no reward needs the policy")


def make_config(num_workers: int) -> Config:
    return load_config(
        [ROOT / "configs" / "demo.yaml"],
        [
            f"batch.prompts_per_step={PROMPTS_PER_STEP}",
            f"batch.completions_per_prompt={NUM_COMPLETIONS}",
            f"batch.tokens_per_microbatch={4 * NUM_TOKENS}",
            f"controller.max_staleness={MAX_STALENESS}",
            f"rollout.num_workers={num_workers}",
            f"reward.num_workers={NUM_REWARD_WORKERS}",
            "rollout.cpus_per_worker=0.01",
            "reward.cpus_per_worker=0.01",
        ],
    )


SAMPLING = Sampling(
    temperature=1.0, top_p=1.0, top_k=0, max_tokens=NUM_TOKENS, num_completions=NUM_COMPLETIONS, seed=0
)  # fmt: skip


def next_prompt() -> Prompt:
    return Prompt(
        prompt_id="p",
        token_ids=np.arange(PROMPT_TOKENS, dtype=np.int32),
        text="?" * 200,
        reference_answer="2",
        task="gsm8k_chains",
    )


async def _no_portions(steps: Sequence[OptimizerStep]) -> None:
    raise AssertionError(f"batches are whole here, got a portion of {len(steps)} ranks")


class Plane:
    """The parts of a run that stand between its actors, and loops that drive them as the controller does."""

    def __init__(self, actors: Actors, *, num_workers: int) -> None:
        from system.commands.run_inputs import make_algorithm
        from system.metrics import MetricSet, MetricTable
        from system.reports.metrics import SYSTEM_METRICS
        from system.runtime.batch_preparation import BatchPreparation
        from system.runtime.group_buffer import GroupBuffer
        from system.runtime.pools import make_pools

        config = make_config(num_workers)
        self.pools = make_pools(config, placement=cast(Any, Handles(actors)), has_learner=False)
        self.scoring = self.pools.group_scoring(config)
        self.buffer = GroupBuffer(prompts_per_step=PROMPTS_PER_STEP, max_staleness=MAX_STALENESS)
        table = MetricTable(SYSTEM_METRICS)
        self.preparation = BatchPreparation(
            config=config,
            algorithm=make_algorithm(config, task=cast(Any, None)),
            buffer=self.buffer,
            scoring=self.scoring,
            replicas=None,
            new_metrics=lambda: MetricSet(table),
            accumulate=_no_portions,
        )
        self.num_trained = 0

    async def run(self, *, num_groups: int, seconds: float, note: Callable[[int], None] = lambda num: None) -> float:
        """Groups per second of at most `num_groups` or `seconds`, the first step left out; `note` hears each step."""
        buffer, tasks = self.buffer, set[asyncio.Task[None]]()

        async def roll_out(group_id: int) -> None:
            prompt = buffer.start_generating(group_id).prompt
            group = await self.pools.generate(
                prompt,
                group_id=group_id,
                sampling=replace(SAMPLING, seed=buffer.published_version),
                on_start=lambda: buffer.worker_has(group_id),
            )
            buffer.start_scoring(group_id)
            buffer.put(await self.scoring.score(group))

        async def lease() -> None:
            while True:
                task = asyncio.create_task(roll_out((await buffer.lease(next_prompt)).group_id))
                tasks.add(task)
                task.add_done_callback(_finished)

        def _finished(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled():
                task.result()

        loops = [asyncio.create_task(lease()), asyncio.create_task(self.preparation.prepare_loop())]
        begin, start = time.perf_counter(), 0.0
        first = end = self.num_trained + PROMPTS_PER_STEP
        while self.num_trained < first + num_groups and time.perf_counter() < begin + seconds:
            prepared = await self.preparation.next()
            buffer.mark_trained(prepared.groups)
            buffer.version_published(buffer.published_version + 1)
            self.num_trained += len(prepared.groups)
            del prepared
            end = self.num_trained
            start = start or time.perf_counter()
            note(end)
        rate = (end - first) / (time.perf_counter() - start)
        for loop in (*loops, *tasks):
            loop.cancel()
        await asyncio.gather(*loops, *tasks, return_exceptions=True)
        return rate


async def run_bare(actors: Actors, *, num_workers: int, num_groups: int, seconds: float) -> float:
    """Groups per second of two awaited Ray calls each, as many in flight as the buffer allows."""
    numbers, num_done = iter(range(num_groups)), 0
    begin = time.perf_counter()

    async def go_on() -> None:
        nonlocal num_done
        for number in numbers:
            rollout, reward = actors.rollouts[number % num_workers], actors.rewards[number % NUM_REWARD_WORKERS]
            group = await rollout.generate.remote(next_prompt(), number, SAMPLING)
            await reward.score.remote([(group, False)])
            num_done += 1
            if time.perf_counter() > begin + seconds:
                return

    await asyncio.gather(*(go_on() for _ in range(PROMPTS_PER_STEP * (MAX_STALENESS + 1))))
    return num_done / (time.perf_counter() - begin)


async def measure_rounds(actors: Actors) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
    """Groups per second by number of workers: through the control plane, and bare."""
    plane: dict[int, list[float]] = {num: [] for num in NUM_WORKERS}
    bare: dict[int, list[float]] = {num: [] for num in NUM_WORKERS}
    for number in range(NUM_ROUNDS):
        for num_workers in NUM_WORKERS:

            async def controlled(num: int = num_workers) -> None:
                one = Plane(actors, num_workers=num)
                await one.pools.start()
                plane[num].append(await one.run(num_groups=ROUND_GROUPS, seconds=ROUND_SECONDS))

            async def uncontrolled(num: int = num_workers) -> None:
                bare[num].append(
                    await run_bare(actors, num_workers=num, num_groups=ROUND_GROUPS, seconds=ROUND_SECONDS)
                )

            # taking turns who goes first: whatever else the machine does hits both
            order: list[Callable[[], Awaitable[None]]] = [controlled, uncontrolled]
            for each in order if number % 2 else reversed(order):
                await each()
    return plane, bare


async def measure_long(actors: Actors) -> dict[str, Any]:
    """One run as long as time allows: cost of a group and memory of the driver, early and late."""
    plane = Plane(actors, num_workers=NUM_WORKERS[1])
    await plane.pools.start()
    process = psutil.Process()
    points: list[tuple[int, float, float]] = []  # groups, CPU seconds, private MiB

    def note(num_groups: int) -> None:
        memory = process.memory_info()
        points.append((num_groups, time.process_time(), (memory.rss - memory.shared) / 2**20))

    rate = await plane.run(num_groups=MOST_GROUPS, seconds=LONG_SECONDS, note=note)
    last = points[-1][0]

    def cost(first: float, end: float) -> float:
        inside = [point for point in points if first <= point[0] <= end]
        return 1e3 * (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])

    tenth = max(4 * PROMPTS_PER_STEP, last / 10)
    early, late = cost(2 * PROMPTS_PER_STEP, 2 * PROMPTS_PER_STEP + tenth), cost(last - tenth, last)
    chosen = [points[round(index * (len(points) - 1) / 5)] for index in range(6)]
    return {
        "long_groups": last,
        "long_groups_per_second": round(rate, 1),
        "cpu_ms_per_group_early": round(early, 2),
        "cpu_ms_per_group_late": round(late, 2),
        "cost_late_over_early": round(late / early, 3),
        "memory_mib": {str(num_groups): round(mib) for num_groups, _, mib in chosen},
    }


def main() -> None:
    import os

    import ray

    from system.runtime.placement import start_ray

    start_ray(make_config(1))
    try:
        actors = Actors()
        plane, bare = asyncio.run(measure_rounds(actors))
        long = asyncio.run(measure_long(actors))
    finally:
        ray.shutdown()
    rates = {num: statistics.median(plane[num]) for num in NUM_WORKERS}
    bare_rates = {num: statistics.median(bare[num]) for num in NUM_WORKERS}
    for num in NUM_WORKERS:
        print(f"{num:3d} workers {rates[num]:8.1f} groups/s, bare calls {bare_rates[num]:8.1f} groups/s")
    ratios = [one / other for num in NUM_WORKERS for one, other in zip(plane[num], bare[num], strict=True)]
    figures = {
        "benchmark": "control_plane",
        "groups_per_second": round(min(rates.values()), 1),
        "groups_per_second_by_workers": {str(num): round(rate, 1) for num, rate in rates.items()},
        "bare_groups_per_second_by_workers": {str(num): round(rate, 1) for num, rate in bare_rates.items()},
        "groups_over_bare": round(statistics.median(ratios), 3),
        **long,
        "target": 500,
        "cpus": os.cpu_count(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
