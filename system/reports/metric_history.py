"""The metrics of a run as read back from its metrics.jsonl; used by the summary and the curves."""

from dataclasses import dataclass
from pathlib import Path

from system.data.json_values import JsonValue
from system.reports.recorder import read_json_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLine:
    """One line of metrics.jsonl. Values that were not finite are absent."""

    policy_version: int
    values: dict[str, float]  # metrics and timing together


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricHistory:
    lines: tuple[HistoryLine, ...]

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Policy versions and values of a metric, in the order they were logged."""
        points = [(line.policy_version, line.values[name]) for line in self.lines if name in line.values]
        return [version for version, _ in points], [value for _, value in points]

    def total(self, name: str) -> float:
        return sum(self.series(name)[1])

    def mean(self, name: str) -> float | None:
        """Mean over the lines that have the metric; None when there is none."""
        values = self.series(name)[1]
        return sum(values) / len(values) if values else None

    def largest(self, name: str) -> float | None:
        return max(self.series(name)[1], default=None)

    def names(self, *, prefix: str) -> list[str]:
        return sorted({name for line in self.lines for name in line.values if name.startswith(prefix)})

    def shares(self, name: str, *, of: str) -> tuple[list[int], list[float]]:
        """Policy versions and quotients of two metrics of a line, where it has both."""
        lines = [line for line in self.lines if name in line.values and line.values.get(of)]
        return [line.policy_version for line in lines], [line.values[name] / line.values[of] for line in lines]

    def lines_with(self, name: str) -> list[HistoryLine]:
        return [line for line in self.lines if name in line.values]


def read_history(path: Path) -> MetricHistory:
    """Reads metrics.jsonl; an absent file is a run without a line."""
    lines = []
    for record in read_json_lines(path):
        version = record.get("policy_version")
        if isinstance(version, int):
            values = {**_numbers(record.get("metrics")), **_numbers(record.get("timing"))}
            lines.append(HistoryLine(policy_version=version, values=values))
    return MetricHistory(lines=tuple(lines))


def _numbers(part: JsonValue) -> dict[str, float]:
    if not isinstance(part, dict):
        return {}
    return {name: float(value) for name, value in part.items() if isinstance(value, int | float)}
