"""What the train loop did with the time of a step: trained, or waited for what. Called by the controller.

    wait for a batch   generation, scoring, a worker      the stages of the groups that were missing (group_timeline.py)
                       rescoring, credit                  once all of them were there
    other phases       weight_sync, evaluation, checkpoint, each as long as it held up the loop
    busy               the learner trains and publishes
    other              the rest of the step

Their shares of a step are metrics that add up to 1; system/reports/bottleneck.py makes a sentence of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from system.metrics import MetricSet
from system.runtime.clock import now
from system.runtime.group_timeline import GroupTimeline
from system.runtime.pools import Pools

_OF_PHASE = {
    "train": "learner/busy_fraction",
    "weight_sync": "wait/weight_sync_fraction",
    "evaluate": "wait/evaluation_fraction",
    "checkpoint": "wait/checkpoint_fraction",
}


class StepWaits:
    """Seconds of the step so far; a step is what lies between two calls of `end_step`."""

    def __init__(self, timeline: GroupTimeline, *, clock: Callable[[], float] = now) -> None:
        self._timeline = timeline
        self._clock = clock
        self._start = clock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def add_phase(self, name: str, *, seconds: float) -> None:
        """The train loop spent `seconds` in a phase of an update; what has no share of its own counts as other."""
        if name in _OF_PHASE:
            self._seconds[_OF_PHASE[name]] += seconds

    def add_batch(
        self, group_ids: Iterable[int], *, start: float, taken_at: float, rescored_at: float, end: float
    ) -> None:
        """The train loop waited from `start` to `end` for the batch of these groups.

        They were complete at `taken_at`, their scores new enough at `rescored_at`: before `start` where they were
        prepared ahead, and then nothing was waited for.
        """
        taken, rescored = max(start, taken_at), max(start, rescored_at)
        waited = self._timeline.attribute(group_ids, start=start, end=taken)
        for stage, seconds in waited.seconds.items():
            self._seconds[f"wait/{stage}_fraction"] += seconds
        self._seconds["wait/straggler_fraction"] += waited.straggler_seconds
        self._seconds["wait/rescoring_fraction"] += rescored - taken
        self._seconds["wait/credit_fraction"] += end - rescored

    def end_step(self, metrics: MetricSet, *, pools: Pools) -> None:
        """Adds the shares of the step, and what the workers of each pool did in it; the next step begins."""
        end = self._clock()
        length = end - self._start
        self._seconds["wait/other_fraction"] = length - sum(
            seconds for name, seconds in self._seconds.items() if name != "wait/straggler_fraction"
        )
        for name, seconds in self._seconds.items():
            metrics.add(name, min(1.0, max(0.0, seconds / length)) if length > 0 else 0.0)
        for area, pool in (("rollout", pools.rollouts), ("reward", pools.rewards), ("scorer", pools.scoring)):
            if pool is not None:
                pool.usage.add_to(metrics, area=area)
        self._start = end
        self._seconds.clear()
