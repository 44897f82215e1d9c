"""One sentence that says what a step waited for, made of its metrics. Used by the display, the tracker and the status.

learner waited 41 % for scoring (p99 3.2 s, reward workers busy 100 %), 12 % for weight sync; trained 40 %
"""

from collections.abc import Mapping

BUSY = "learner/busy_fraction"
_WAITS = {
    "wait/worker_fraction": "a free rollout worker",
    "wait/generation_fraction": "generation",
    "wait/scoring_fraction": "scoring",
    "wait/rescoring_fraction": "rescoring",
    "wait/credit_fraction": "credit and packing",
    "wait/weight_sync_fraction": "weight sync",
    "wait/evaluation_fraction": "evaluation",
    "wait/checkpoint_fraction": "a checkpoint",
    "wait/other_fraction": "the controller",
}
_AREAS = {
    "wait/worker_fraction": ("rollout",),
    "wait/generation_fraction": ("rollout",),
    "wait/scoring_fraction": ("reward", "scorer"),
    "wait/rescoring_fraction": ("scorer",),
}
_WORKERS = {"rollout": "rollout workers", "reward": "reward workers", "scorer": "scoring replicas"}
_SMALL = 0.05  # share of a step below which a second wait is left out, and a first one is no bottleneck


def bottleneck(metrics: Mapping[str, float]) -> str | None:
    """The sentence of a step from its reduced metrics; None where they hold no shares of the step."""
    if BUSY not in metrics:
        return None
    busy = metrics[BUSY]
    waits = sorted(((metrics.get(name, 0.0), name) for name in _WAITS), reverse=True)
    (first, name), (second, next_name) = waits[:2]
    if first < _SMALL:
        return f"learner trained {_percent(busy)} of the step; nothing else took {_percent(_SMALL)}"
    sentence = f"learner waited {_percent(first)} for {_WAITS[name]}{_details(name, metrics=metrics)}"
    if second >= _SMALL:
        sentence += f", {_percent(second)} for {_WAITS[next_name]}"
    return f"{sentence}; trained {_percent(busy)}"


def _details(name: str, *, metrics: Mapping[str, float]) -> str:
    """Of the pool that was waited for: the busiest where it may be either."""
    parts = []
    areas = [area for area in _AREAS.get(name, ()) if f"{area}/busy_fraction" in metrics]
    if areas:
        area = max(areas, key=lambda each: metrics[f"{each}/busy_fraction"])
        slowest = metrics.get(f"{area}/call_p99_seconds")
        if slowest is not None:
            parts.append(f"p99 {slowest:.2g} s" if slowest < 10 else f"p99 {slowest:,.0f} s")
        parts.append(f"{_WORKERS[area]} busy {_percent(metrics[f'{area}/busy_fraction'])}")
    straggling = metrics.get("wait/straggler_fraction", 0.0)
    if name in ("wait/generation_fraction", "wait/scoring_fraction") and straggling >= 0.5 * metrics[name]:
        parts.append(f"a single group for {_percent(straggling)}")
    return f" ({', '.join(parts)})" if parts else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
