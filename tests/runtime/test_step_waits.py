"""What a run over fakes says it waited for, in virtual time: the stages take the seconds that the test gives them."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from system.metrics import MetricSet, MetricTable
from system.reports.bottleneck import bottleneck
from system.reports.metrics import SYSTEM_METRICS
from system.runtime.group_timeline import GroupTimeline
from system.runtime.pool_member import PoolSettings
from system.runtime.pools import Pools
from system.runtime.step_waits import StepWaits
from system.runtime.worker_pool import WorkerPool
from tests.fakes import make_pool
from tests.runtime.controller_fakes import FakeRun, make_config
from tests.virtual_time import run_in_virtual_time

STAGES = ("worker", "generation", "scoring", "rescoring", "credit", "weight_sync", "evaluation", "checkpoint", "other")


def test_the_shares_of_a_step_add_up_to_one() -> None:
    time = 100.0
    timeline = GroupTimeline(clock=lambda: time)
    waits = StepWaits(timeline, clock=lambda: time)
    timeline.enter(7, "generation")
    time = 104.0
    timeline.enter(7, "scoring")
    time = 105.0
    timeline.enter(7, None)
    waits.add_batch([7], start=101.0, taken_at=105.0, rescored_at=106.0, end=108.0)
    waits.add_phase("train", seconds=8.0)
    waits.add_phase("weight_sync", seconds=1.0)
    waits.add_phase("checkpoint", seconds=2.0)
    time = 120.0
    pools = Pools(rollouts=make_pool([]), rewards=make_pool([]), scoring=None)
    metrics = MetricSet(MetricTable(SYSTEM_METRICS))
    waits.end_step(metrics, pools=pools)
    values = {
        name.removeprefix("wait/").removesuffix("_fraction"): 20 * value for name, value in metrics.reduce().items()
    }
    assert values.pop("straggler") == 0.0
    assert values == pytest.approx(
        {
            "worker": 0, "generation": 3, "scoring": 1, "rescoring": 1, "credit": 2, "weight_sync": 1,
            "checkpoint": 2, "other": 2, "learner/busy": 8,
        }
    )  # fmt: skip


def test_a_batch_that_was_prepared_ahead_costs_no_wait() -> None:
    time = 0.0
    waits = StepWaits(GroupTimeline(clock=lambda: time), clock=lambda: time)
    waits.add_batch([], start=5.0, taken_at=1.0, rescored_at=2.0, end=5.0)
    time = 10.0
    metrics = MetricSet(MetricTable(SYSTEM_METRICS))
    waits.end_step(metrics, pools=Pools(rollouts=make_pool([]), rewards=make_pool([]), scoring=None))
    assert metrics.reduce()["wait/other_fraction"] == 1.0


class TimedRun(FakeRun):
    """Engines generate, and load, in `generation` seconds, verifiers score in `scoring`, a step takes `training`."""

    def __init__(
        self, *, generation: float, scoring: float, training: float, engine_load: int = 64, **overrides: object
    ) -> None:
        self.engine_load = engine_load
        self.seconds = {"rollout worker": generation, "reward worker": scoring}
        settings = {"run__num_updates": 6, "evaluation__every_updates": "null", "checkpoint__every_updates": "null"}
        super().__init__(make_config(**(settings | overrides)))
        self.learner.pause = lambda: asyncio.sleep(training)

    def _pool(self, settings: PoolSettings, make: Callable[[], Any]) -> WorkerPool:
        def make_timed() -> Any:
            actor = make()
            actor.pause = lambda: asyncio.sleep(self.seconds[settings.kind])
            return actor

        is_engine = settings.kind == "rollout worker"
        return super()._pool(replace(settings, max_load=self.engine_load) if is_engine else settings, make_timed)

    def shares(self) -> list[dict[str, float]]:
        """The metrics of the updates, but the first and the last."""
        run_in_virtual_time(self.run())
        lines = [line for version, line in self.reporter.lines if 1 < version < self.config.run.num_updates]
        for line in lines:
            parts = [line["learner/busy_fraction"], *(line.get(f"wait/{stage}_fraction", 0.0) for stage in STAGES)]
            assert sum(parts) == pytest.approx(1.0)
        assert lines
        return lines


def test_a_synchronous_run_waits_for_each_stage_in_turn() -> None:
    # 2 s of generation, 5 s of scoring twice (the verifier took the first of two groups alone), training, loading
    for line in TimedRun(generation=2.0, scoring=5.0, training=3.0).shares():
        assert line["wait/generation_fraction"] == pytest.approx(2 / 17)
        assert line["wait/scoring_fraction"] == pytest.approx(10 / 17)
        assert line["wait/straggler_fraction"] == pytest.approx(5 / 17)
        assert line["wait/weight_sync_fraction"] == pytest.approx(2 / 17)
        assert line["learner/busy_fraction"] == pytest.approx(3 / 17)
        assert line["reward/busy_fraction"] == pytest.approx(10 / 17)
        assert line["reward/call_p99_seconds"] == pytest.approx(10.0)
        assert line["rollout/busy_fraction"] == pytest.approx(2 / 17)
        sentence = bottleneck(line)
        assert sentence is not None
        assert sentence.startswith(
            "learner waited 59 % for scoring (p99 10 s, reward workers busy 59 %, a single group for 29 %), 12 % for "
        )


def test_a_learner_that_is_the_slowest_waits_for_nobody() -> None:
    lines = TimedRun(generation=0.5, scoring=0.5, training=40.0, controller__max_staleness=1).shares()
    assert all(line["learner/busy_fraction"] > 0.95 for line in lines)
    assert bottleneck(lines[-1]) == "learner trained 99 % of the step; nothing else took 5 %"


def test_groups_that_no_worker_has_room_for_wait_for_a_worker() -> None:
    # groups of 2 completions on an engine that holds 2: they are generated one after the other
    for line in TimedRun(generation=3.0, scoring=0.0, training=0.0, engine_load=2).shares():
        assert line["wait/worker_fraction"] == pytest.approx(0.5 * 3.0 / 9.0)
        assert line["wait/generation_fraction"] == pytest.approx(4.5 / 9.0)
        assert line["wait/straggler_fraction"] == pytest.approx(3.0 / 9.0)
        assert line["wait/weight_sync_fraction"] == pytest.approx(3.0 / 9.0)
