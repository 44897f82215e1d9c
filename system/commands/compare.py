"""`credence compare`: a table and a figure of several methods, each a few runs that differ in their seed.

The table: held-out accuracy before and after, mean length, tokens for each right completion, minutes, and where a guard
against reward hacking first turned on. An interval of a mean is Student's t over runs (95 %): with three seeds it is
wide, and honest. The figure: sampled held-out accuracy and length of training completions
over updates, the mean over runs as a line, their smallest and largest value as a band; and pass@k against the tokens of
k completions, mean over runs, with the policy before training as `base`. Where runs credit steps, also the mean
value of each step over the last updates, and over the first.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from system.errors import ConfigError
from system.reports.axes import finish_updates_axes, legend_below
from system.reports.metric_history import MetricHistory, read_history
from system.reports.pass_at_k_figure import draw_tokens_curve, finish_tokens_axes, pass_at_k_points

# two-sided 95 % quantiles of Student's t, by number of runs
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
SMOOTHING_UPDATES = 10
VALUE_UPDATES = 20  # the last ones, of which values of steps are the mean
MAX_VALUE_STEPS = 8  # steps that are drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One metric over updates."""

    metric: str
    title: str
    window: int = 1  # updates that are averaged


PANELS = (
    Panel(metric="eval/accuracy_sampled", title="held-out accuracy, sampled"),
    Panel(
        metric="completion/length_mean_tokens",
        title="length of training completions (tokens)",
        window=SMOOTHING_UPDATES,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    summary: dict[str, float]
    history: MetricHistory

    def series(self, name: str) -> dict[int, float]:
        """Value by policy version."""
        return dict(zip(*self.history.series(name), strict=True))

    def first_alarm(self) -> str:
        """The guards that turned on first, with their update, or a dash."""
        for line in self.history.lines:
            values = line.values
            on = [name.removeprefix("guard/") for name in values if name.startswith("guard/") and values[name]]
            if on:
                return f"{', '.join(on)} at {line.policy_version}"
        return "-"


def read_run(directory: Path) -> Run:
    """A finished run. Raises ConfigError."""
    path = directory / "summary.json"
    if not path.is_file():
        raise ConfigError(
            "RUN_DIR", given=str(directory), expected="a finished run with summary.json", fix="e.g. runs/demo"
        )
    summary = json.loads(path.read_text(encoding="utf-8"))
    if summary["accuracy_after"] is None:
        raise ConfigError(
            "RUN_DIR",
            given=str(directory),
            expected=f"a run with an evaluation at its end, but it was ended by {summary['stopped_by']}",
            fix=f"credence train --resume {directory}",
        )
    return Run(summary=summary, history=read_history(directory / "metrics.jsonl"))


def mean_with_interval(values: list[float]) -> str:
    """Mean and half width of its interval, both in the unit of the values."""
    mean = statistics.fmean(values)
    if len(values) not in T_QUANTILES:
        return f"{mean:+.1f}"
    half = T_QUANTILES[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.1f} ± {half:.1f}"


def print_table(methods: dict[str, list[Run]]) -> None:
    print(
        "| method | sampled before → after, by seed (%) | gain | greedy gain | held-out length (tokens) "
        "| tokens for each right one | updates in minutes | first guard |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for label, runs in methods.items():
        pairs = [
            f"{100 * run.summary['accuracy_before']:.1f} → {100 * run.summary['accuracy_after']:.1f}" for run in runs
        ]
        gains = [100 * (run.summary["accuracy_after"] - run.summary["accuracy_before"]) for run in runs]
        greedy = [100 * (run.summary["accuracy_greedy_after"] - run.summary["accuracy_greedy_before"]) for run in runs]
        lengths = [list(run.series("eval/length_mean_tokens").values()) for run in runs]
        per_solved = [
            [
                length / accuracy if accuracy else math.inf
                for length, accuracy in zip(each, run.series("eval/accuracy_sampled").values(), strict=True)
            ]
            for each, run in zip(lengths, runs, strict=True)
        ]
        cells = (
            label,
            ", ".join(pairs),
            mean_with_interval(gains),
            mean_with_interval(greedy),
            _first_and_last(lengths),
            _first_and_last(per_solved),
            ", ".join(f"{run.summary['num_updates']} in {run.summary['seconds'] / 60:.1f}" for run in runs),
            "; ".join(run.first_alarm() for run in runs),
        )
        print(f"| {' | '.join(cells)} |")


def _first_and_last(series: list[list[float]]) -> str:
    """Means over runs of the first and of the last value."""
    first, last = (statistics.fmean(values[position] for values in series) for position in (0, -1))
    return f"{first:.0f} → {last:.0f}"


def smoothed(series: dict[int, float], *, window: int) -> dict[int, float]:
    """Mean of each value and those before it, `window` at most."""
    values = list(series.values())
    return {
        version: statistics.fmean(values[max(0, end - window) : end]) for end, version in enumerate(series, start=1)
    }


def draw(methods: dict[str, list[Run]], *, path: Path) -> None:
    has_values = any(run.series("credit/value_at_step_0") for runs in methods.values() for run in runs)
    num_panels = len(PANELS) + 1 + has_values
    figure = Figure(figsize=(6 * num_panels, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = list(figure.subplots(1, num_panels))
    for axes, panel in zip(all_axes, PANELS, strict=False):
        draw_panel(axes, methods=methods, panel=panel)
    _draw_tokens(all_axes[len(PANELS)], methods=methods)
    if has_values:
        _draw_values(all_axes[-1], methods=methods)
    legend_below(figure.axes[0])
    figure.savefig(path, dpi=110)


def draw_panel(axes: Axes, *, methods: dict[str, list[Run]], panel: Panel) -> None:
    """Mean over a method's runs as a line, their smallest and largest value as a band."""
    for label, runs in methods.items():
        all_series = [smoothed(run.series(panel.metric), window=panel.window) for run in runs]
        versions = sorted(set.intersection(*(set(series) for series in all_series)))
        columns = [[series[version] for series in all_series] for version in versions]
        (line,) = axes.plot(versions, [statistics.fmean(column) for column in columns], label=label)
        axes.fill_between(
            versions, [min(each) for each in columns], [max(each) for each in columns],
            color=line.get_color(), alpha=0.15, linewidth=0,
        )  # fmt: skip
    finish_updates_axes(axes, title=panel.title, label="")


def _draw_tokens(axes: Axes, *, methods: dict[str, list[Run]]) -> None:
    """The last full evaluation of every method's runs, and the first of all runs as `base`."""
    # the base last, so that a method has the same colour in all panels
    curves = {label: [_full_evaluations(run)[-1] for run in runs] for label, runs in methods.items()}
    curves["base"] = [_full_evaluations(run)[0] for runs in methods.values() for run in runs]
    for label, all_points in curves.items():
        means = [
            (statistics.fmean(tokens for tokens, _ in column), statistics.fmean(accuracy for _, accuracy in column))
            for column in zip(*all_points, strict=True)
        ]
        draw_tokens_curve(axes, points=means, label=label)
    finish_tokens_axes(axes, title="pass@k against tokens")


def _full_evaluations(run: Run) -> list[list[tuple[float, float]]]:
    """Points of the evaluations at the start and at the end, which are the largest."""
    lines = run.history.lines_with("eval/accuracy_sampled")
    return [pass_at_k_points(line) for line in (lines[0], lines[-1])]


def _draw_values(axes: Axes, *, methods: dict[str, list[Run]]) -> None:
    """Mean over the last updates as a line, over the first ones dashed; a method has its colour of the other panels."""
    for index, (label, runs) in enumerate(methods.items()):
        last = _values_by_step(runs, updates=slice(-VALUE_UPDATES, None))
        if last:
            first = _values_by_step(runs, updates=slice(VALUE_UPDATES))
            axes.plot(list(last), list(last.values()), marker="o", color=f"C{index}", label=label)
            axes.plot(list(first), list(first.values()), linestyle="--", color=f"C{index}")
    axes.set_title(f"value of each step, last {VALUE_UPDATES} updates (dashed: first)", fontsize=11)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    legend_below(axes)


def _values_by_step(runs: list[Run], *, updates: slice) -> dict[int, float]:
    """Mean over runs and their updates; steps that no completion had are left out."""
    means = {}
    for step in range(MAX_VALUE_STEPS):
        values = [value for run in runs for value in list(run.series(f"credit/value_at_step_{step}").values())[updates]]
        if values:
            means[step] = statistics.fmean(values)
    return means


def parse_methods(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Run folders by label, from `[LABEL=]RUN_DIR,RUN_DIR,...` each; without a label the first folder's name."""
    methods: dict[str, list[Path]] = {}
    for text in texts:
        label, separator, named = text.rpartition("=")
        folders = [Path(folder) for folder in named.split(",")]
        methods[label if separator else folders[0].name] = folders
    return methods


def main(argv: Sequence[str]) -> int:
    """Print the table and draw the figure; returns the exit code. Raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog="credence compare",
        description="A Markdown table of finished runs, and a figure of their curves. Runs of one method, separated by "
        "commas, are averaged.",
    )
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN_DIR,...", help="one method, and its runs")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="where the figure goes; default: none")
    options = parser.parse_args(list(argv))
    methods = {label: [read_run(each) for each in folders] for label, folders in parse_methods(options.runs).items()}
    print_table(methods)
    if options.figure is not None:
        draw(methods, path=options.figure)
    return 0
