"""A table and a figure of several methods, each a few runs that differ in their seed.

    python -m tools.compare_runs FIGURE.png LABEL=RUN_DIR,RUN_DIR,... [LABEL=...]

The table: held-out accuracy before and after, mean length at the end, and where a guard against reward hacking first
turned on. The figure: sampled held-out accuracy and length of training completions over updates, the mean over runs as
a line, their smallest and largest value as a band.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tools.results_table import mean_with_interval

SMOOTHING_UPDATES = 10
PANELS = (
    ("eval/accuracy_sampled", "held-out accuracy, sampled", 1),
    ("completion/length_mean_tokens", "length of training completions (tokens)", SMOOTHING_UPDATES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    summary: dict[str, float]
    lines: list[tuple[int, dict[str, float]]]  # (policy version, metrics), ascending

    def series(self, name: str) -> dict[int, float]:
        """Value by policy version."""
        return {version: metrics[name] for version, metrics in self.lines if name in metrics}

    def first_alarm(self) -> str:
        """The guards that turned on first, with their update, or a dash."""
        for version, metrics in self.lines:
            on = [name.removeprefix("guard/") for name in metrics if name.startswith("guard/") and metrics[name]]
            if on:
                return f"{', '.join(on)} at {version}"
        return "-"


def read_run(directory: Path) -> Run:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return Run(
        summary=json.loads((directory / "summary.json").read_text(encoding="utf-8")),
        lines=[(row["policy_version"], row["metrics"]) for row in rows],
    )


def print_table(methods: dict[str, list[Run]]) -> None:
    print("| method | sampled before → after, by seed (%) | gain | greedy gain | length at the end | first guard |")
    print("|---|---|---|---|---|---|")
    for label, runs in methods.items():
        pairs = [
            f"{100 * run.summary['accuracy_before']:.1f} → {100 * run.summary['accuracy_after']:.1f}" for run in runs
        ]
        gains = [100 * (run.summary["accuracy_after"] - run.summary["accuracy_before"]) for run in runs]
        greedy = [100 * (run.summary["accuracy_greedy_after"] - run.summary["accuracy_greedy_before"]) for run in runs]
        lengths = [list(run.series("completion/length_mean_tokens").values())[-1] for run in runs]
        cells = (
            label,
            ", ".join(pairs),
            mean_with_interval(gains),
            mean_with_interval(greedy),
            f"{statistics.fmean(lengths):.0f}",
            "; ".join(run.first_alarm() for run in runs),
        )
        print(f"| {' | '.join(cells)} |")


def smoothed(series: dict[int, float], *, window: int) -> dict[int, float]:
    """Mean of each value and those before it, `window` at most."""
    values = list(series.values())
    return {
        version: statistics.fmean(values[max(0, end - window) : end]) for end, version in enumerate(series, start=1)
    }


def draw(methods: dict[str, list[Run]], *, path: Path) -> None:
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title, window) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for label, runs in methods.items():
            all_series = [smoothed(run.series(name), window=window) for run in runs]
            versions = sorted(set.intersection(*(set(series) for series in all_series)))
            columns = [[series[version] for series in all_series] for version in versions]
            (line,) = axes.plot(versions, [statistics.fmean(column) for column in columns], label=label)
            axes.fill_between(
                versions, [min(each) for each in columns], [max(each) for each in columns],
                color=line.get_color(), alpha=0.15, linewidth=0,
            )  # fmt: skip
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("updates")
        axes.grid(alpha=0.25)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 2 or not all("=" in each for each in arguments[1:]):
        sys.exit(__doc__)
    methods: dict[str, list[Run]] = {}
    for each in arguments[1:]:
        label, _, directories = each.partition("=")
        methods[label] = [read_run(Path(directory)) for directory in directories.split(",")]
    print_table(methods)
    draw(methods, path=Path(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
