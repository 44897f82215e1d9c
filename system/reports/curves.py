"""curves.png of a run: accuracy, length and entropy, gradient and divergence, where the time went.

A run that monitors self-certainty has three more: certainty, and how much the completions repeat. A run whose
algorithm credits steps has two more: what each step is worth, and how much of an update's time that takes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from system.reports.axes import finish_updates_axes, legend_below
from system.reports.metric_history import MetricHistory
from system.reports.metrics import PHASES

SMOOTHING_UPDATES = 10
_NUM_COLUMNS = 2
BLUE = "#4c72b0"
CERTAINTY = "reward/self_certainty_mean"
PHASE_COLOURS = ("#4c72b0", "#ccb974", "#8c8c8c", "#dd8452", "#55a868", "#8172b3", "#c44e52")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    draw: Callable[[Axes, MetricHistory], None]


def draw_curves(history: MetricHistory, *, path: Path, title: str) -> None:
    """Writes one PNG, the figure of `curves_figure`."""
    curves_figure(history, title=title).savefig(path, dpi=110)


def curves_figure(history: MetricHistory, *, title: str) -> Figure:
    """Panels over policy versions; those without data say so."""
    panels = [_Panel(draw=_draw_accuracy), *(_curve(*each) for each in _curves(history)), _Panel(draw=_draw_phases)]
    if history.names(prefix="credit/"):
        panels += [_Panel(draw=_draw_values), _Panel(draw=_draw_credit_time)]
    num_rows = math.ceil(len(panels) / _NUM_COLUMNS)
    figure = Figure(figsize=(6 * _NUM_COLUMNS, 3.6 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.subplots(num_rows, _NUM_COLUMNS, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        panel.draw(axes, history)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def _curves(history: MetricHistory) -> list[tuple[str, str, str]]:
    """Metric, title and label of every panel with one curve: one axis each, so that no two curves coincide."""
    has_reference = bool(history.largest("learner/reference_kl_nats"))
    curves = [
        ("completion/length_mean_tokens", "Length of completions", "tokens"),
        ("learner/entropy_nats", "Entropy", "nats"),
        ("learner/gradient_norm", "Gradient norm", "norm"),
        ("learner/reference_kl_nats", "KL to the reference", "nats")
        if has_reference
        else ("learner/mismatch_kl_nats", "KL of engine and learner", "nats"),
    ]
    reward, accuracy = (history.series(name)[1] for name in ("reward/mean", "train/accuracy"))
    if reward and not _are_same(reward, accuracy):  # with the verifier alone they are one curve
        curves.insert(0, ("reward/mean", "Reward", "reward"))
    if history.series(CERTAINTY)[1]:
        curves += [
            (CERTAINTY, "Self-certainty", "nats"),
            ("completion/distinct_2", "Distinct 2-grams", "share"),
            ("completion/repetition_4", "Repeated 4-grams", "share"),
        ]
    return curves


def _curve(metric: str, title: str, label: str) -> _Panel:
    def draw(axes: Axes, history: MetricHistory) -> None:
        versions, values = history.series(metric)
        axes.plot(versions, values, color=BLUE, alpha=0.25, linewidth=1)
        axes.plot(versions, _smoothed(values), color=BLUE)
        _finish(axes, title=title, label=label, has_data=bool(values))

    return _Panel(draw=draw)


def _draw_accuracy(axes: Axes, history: MetricHistory) -> None:
    versions, accuracy = history.series("train/accuracy")
    axes.plot(versions, accuracy, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(versions, _smoothed(accuracy), color=BLUE, label=f"training, mean of {SMOOTHING_UPDATES}")
    has_data = bool(accuracy)
    for kind, colour in (("sampled", "#c44e52"), ("greedy", "#55a868")):
        name = f"eval/accuracy_{kind}"
        points = history.lines_with(name)
        has_data = has_data or bool(points)
        axes.errorbar(
            [line.policy_version for line in points],
            [line.values[name] for line in points],
            yerr=[
                [max(line.values[name] - line.values.get(f"{name}_low", line.values[name]), 0) for line in points],
                [max(line.values.get(f"{name}_high", line.values[name]) - line.values[name], 0) for line in points],
            ],
            color=colour,
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.2,
            label=f"held-out, {kind} (95 %)",
        )
    _finish(axes, title="Accuracy", label="accuracy", has_data=has_data)
    legend_below(axes)


def _draw_values(axes: Axes, history: MetricHistory) -> None:
    prefix = "credit/value_at_"
    lines = {name.removeprefix(prefix).replace("_", " "): history.series(name) for name in history.names(prefix=prefix)}
    _draw_family(axes, lines=lines, title="Value of each step", label="value")


def _draw_credit_time(axes: Axes, history: MetricHistory) -> None:
    lines = {
        name.removeprefix("credit/").removesuffix("_seconds"): history.shares(name, of="time/step_seconds")
        for name in history.names(prefix="credit/")
        if name.endswith("_seconds")
    }
    _draw_family(axes, lines=lines, title="Time for credit", label="share of the update's time")


def _draw_family(axes: Axes, *, lines: dict[str, tuple[list[int], list[float]]], title: str, label: str) -> None:
    """One smoothed line for each label that has values."""
    drawn = {legend: points for legend, points in lines.items() if points[1]}
    for legend, (versions, values) in drawn.items():
        axes.plot(versions, _smoothed(values), label=legend)
    _finish(axes, title=title, label=label, has_data=bool(drawn))
    if drawn:
        legend_below(axes, num_columns=4)


def _draw_phases(axes: Axes, history: MetricHistory) -> None:
    lines = [line for line in history.lines if line.policy_version > 0]
    versions = [line.policy_version for line in lines]
    stacks = [[line.values.get(f"time/{phase}_seconds", 0.0) for line in lines] for phase in PHASES]
    if lines:
        axes.stackplot(versions, stacks, labels=PHASES, colors=PHASE_COLOURS, step="mid", linewidth=0)
        # One long evaluation would flatten all other updates.
        usual = sorted(sum(values) for values in zip(*stacks, strict=True))[int(0.9 * (len(lines) - 1))]
        axes.set_ylim(0, max(usual * 1.6, 1e-9))
        legend_below(axes, num_columns=4)
    _finish(axes, title="Time by phase", label="seconds per update", has_data=bool(lines))


def _finish(axes: Axes, *, title: str, label: str, has_data: bool) -> None:
    finish_updates_axes(axes, title=title, label=label)
    if not has_data:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="#8c8c8c")


def _are_same(left: list[float], right: list[float]) -> bool:
    return len(left) == len(right) and all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(left, right, strict=True))


def _smoothed(values: list[float]) -> list[float]:
    """Mean of each value and those before it, SMOOTHING_UPDATES at most."""
    windows = (values[max(0, end - SMOOTHING_UPDATES) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]
