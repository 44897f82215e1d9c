"""Time of an asynchronous step over its slower half, with stages whose length is known.

    step_over_slowest_stage = step / max(generation alone, learning alone)

The real controller, buffer, pools and batch preparation run over the fakes of the tests: engines that hold a number of
groups and sleep for each, a learner that sleeps for each step. Stages are of constant length, or vary: a group's time
is then log-normal (sigma 0.5, so that one in a batch of 16 takes more than twice the mean), a step's within a fifth.
Alone means the same run, with the same draws, where the other half takes no time. Learning takes half, just as long,
and twice as long as generation, under a staleness of 1 and of 2. What a step waited for is in the figures: the shares
that the run itself reports. Run it without arguments; no Ray, no model; about three minutes.
"""

import asyncio
import functools
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from system.records import Prompt, Sampling, TrajectoryGroup  # noqa: E402
from system.runtime.pool_member import PoolSettings  # noqa: E402
from system.runtime.worker_pool import WorkerPool  # noqa: E402
from tests.runtime.controller_fakes import NUM_COMPLETIONS, FakeEngine, FakeRun, make_config  # noqa: E402

GENERATION_SECONDS = 0.4  # mean of a group, and of a batch: the engines hold as many groups as a batch has
LEARNING_OVER_GENERATION = (0.5, 1.0, 2.0)
STALENESS = (1, 2)
PROMPTS_PER_STEP, NUM_WORKERS, NUM_UPDATES, NUM_WARMUP_UPDATES = 16, 2, 14, 3
SIGMA, LEARNING_SPREAD = 0.5, 0.2


@dataclass(eq=False)
class TimedEngine(FakeEngine):
    """Loads at once, and takes `draw_seconds(group_id)` for a group."""

    draw_seconds: Callable[[int], float] = lambda group_id: 0.0

    async def on_load(self, version: int) -> int:
        self.version = version
        return version

    async def on_generate(self, prompt: Prompt, group_id: int, sampling: Sampling) -> TrajectoryGroup:
        await asyncio.sleep(self.draw_seconds(group_id))
        return await super().on_generate(prompt, group_id, sampling)


class TimedRun(FakeRun):
    """Mean seconds of a batch's generation and of a step; evaluations and checkpoints are left out."""

    def __init__(self, *, generation: float, learning: float, max_staleness: int, varies: bool) -> None:
        self.generation = generation
        self.varies = varies
        spread = LEARNING_SPREAD if varies else 0.0
        random = Random(0)
        config = make_config(
            batch__prompts_per_step=PROMPTS_PER_STEP,
            controller__max_staleness=max_staleness,
            rollout__num_workers=NUM_WORKERS,
            run__num_updates=NUM_UPDATES,
            evaluation__every_updates="null",
            checkpoint__every_updates="null",
        )
        super().__init__(config)

        async def learn() -> None:
            await asyncio.sleep(learning * random.uniform(1.0 - spread, 1.0 + spread))

        self.learner.pause = learn

    async def pause(self) -> None:
        """Verifiers and engines take no other time."""

    def _pool(self, settings: PoolSettings, make: Callable[[], Any]) -> WorkerPool:
        if settings.kind != "rollout worker":
            return super()._pool(settings, make)
        load = NUM_COMPLETIONS * PROMPTS_PER_STEP // NUM_WORKERS
        return super()._pool(
            replace(settings, max_load=load),
            lambda: TimedEngine(pause=self.pause, draw_seconds=self._draw_seconds),
        )

    def _draw_seconds(self, group_id: int) -> float:
        """The same for a group in every run; the mean over groups is `generation`."""
        return self.generation * (Random(group_id).lognormvariate(-(SIGMA**2) / 2, SIGMA) if self.varies else 1.0)


def measure(*, generation: float, learning: float, max_staleness: int, varies: bool) -> tuple[float, dict[str, float]]:
    """Mean seconds of a step, and the mean shares of what it was spent on."""
    run = TimedRun(generation=generation, learning=learning, max_staleness=max_staleness, varies=varies)
    asyncio.run(run.run())
    lines = [line for version, line in run.reporter.lines if NUM_WARMUP_UPDATES < version < NUM_UPDATES]
    names = ["learner/busy_fraction", *sorted({name for line in lines for name in line if name.startswith("wait/")})]
    shares = {name: statistics.fmean(line.get(name, 0.0) for line in lines) for name in names}
    return statistics.fmean(line["time/step_seconds"] for line in lines), shares


def main() -> None:
    ratios: dict[str, float] = {}
    shares: dict[str, dict[str, float]] = {}
    for varies, max_staleness in itertools.product((False, True), STALENESS):
        measured = functools.partial(measure, max_staleness=max_staleness, varies=varies)
        alone, _ = measured(generation=GENERATION_SECONDS, learning=0.0)
        for factor in LEARNING_OVER_GENERATION:
            learning = factor * GENERATION_SECONDS
            learning_alone, _ = measured(generation=0.0, learning=learning)
            step, spent = measured(generation=GENERATION_SECONDS, learning=learning)
            lengths = "varying" if varies else "constant"
            case = f"{lengths} lengths, staleness {max_staleness}, learning {factor:g} x generation"
            ratios[case] = step / max(alone, learning_alone)
            shares[case] = {name: round(share, 3) for name, share in spent.items() if share >= 0.005}
            print(
                f"{case}: step {step:.3f} s, generation alone {alone:.3f} s, learning alone {learning_alone:.3f} s: "
                f"{ratios[case]:.3f}"
            )
    figures = {
        "benchmark": "async",
        "step_over_slowest_stage": round(max(ratios.values()), 3),
        "step_over_slowest_stage_of_constant": round(
            max(ratio for case, ratio in ratios.items() if case.startswith("constant")), 3
        ),
        "step_over_slowest_stage_of_each": {case: round(ratio, 3) for case, ratio in ratios.items()},
        "shares_of_each": shares,
        "target": 1.05,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
