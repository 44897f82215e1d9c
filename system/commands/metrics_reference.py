"""`credence metrics`: every metric of a run with its meaning, as text or as the page docs/metrics.md."""

import argparse
from collections.abc import Sequence

from learner.step_statistics import LEARNER_METRICS
from system.config.algorithms import built_in_algorithms
from system.metrics import MetricDefinition
from system.reports.guards import GUARD_METRICS
from system.reports.metrics import SYSTEM_METRICS

RUN_METRICS = (*SYSTEM_METRICS, *LEARNER_METRICS, *GUARD_METRICS)  # of every run; an algorithm adds its own
REDUCTIONS = {"mean": "mean", "sum": "sum", "max": "largest", "last": "newest"}


def main(argv: Sequence[str]) -> int:
    """Print the reference; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="credence metrics", description="Print every metric of metrics.jsonl and W&B with its meaning."
    )
    parser.add_argument("--markdown", action="store_true", help="as tables: what docs/metrics.md holds")
    print(metrics_markdown() if parser.parse_args(list(argv)).markdown else metrics_text())
    return 0


def metrics_text() -> str:
    """Every metric and its meaning, by area."""
    lines: list[str] = []
    for area, definitions in _by_area().items():
        lines += ["", f"{area}:"] if lines else [f"{area}:"]
        lines += [f"  {each.name}  ({REDUCTIONS[each.reduction]})\n      {each.description}" for each in definitions]
    return "\n".join(lines)


def metrics_markdown() -> str:
    """The page docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Written by `credence metrics --markdown > docs/metrics.md`; a test keeps it current.",
        "",
        "One line of `metrics.jsonl` and one W&B step for each update. Several values within one update become their "
        "mean, sum, largest or newest. `<word>` stands for one that is not known beforehand.",
    ]
    for area, definitions in _by_area().items():
        lines += ["", f"## {area}", "", "| metric | of an update | meaning |", "|---|---|---|"]
        lines += [f"| `{each.name}` | {REDUCTIONS[each.reduction]} | {each.description} |" for each in definitions]
    return "\n".join(lines)


def _by_area() -> dict[str, list[MetricDefinition]]:
    areas: dict[str, list[MetricDefinition]] = {}
    for each in all_metrics():
        areas.setdefault(each.name.partition("/")[0], []).append(each)
    return dict(sorted(areas.items()))


def all_metrics() -> tuple[MetricDefinition, ...]:
    """Those of every run, then those of the built-in algorithms."""
    own = (each for algorithm in built_in_algorithms().values() for each in algorithm.metric_definitions)
    return tuple(dict.fromkeys([*RUN_METRICS, *own]))
