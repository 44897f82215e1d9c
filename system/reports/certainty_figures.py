"""The figures of `credence select` and `credence certainty-report`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from system.reports.axes import legend_below

_COLOURS = ("#000000", "#8c8c8c", "#4c72b0", "#c44e52", "#dd8452", "#55a868", "#8172b3", "#937860")
_MAX_BINS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """Accuracy at N completions and the ends of its 95 % interval, 0-1."""

    num_completions: int
    mean: float
    low: float
    high: float


def draw_selection(curves: Mapping[str, Sequence[CurvePoint]], *, path: Path, title: str) -> None:
    """Writes one PNG: accuracy of each selector (by its label) against N, with 95 % error bars."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sizes = sorted({point.num_completions for points in curves.values() for point in points})
    for position, (label, points) in enumerate(curves.items()):
        # side by side, so that the bars of one N do not hide each other
        shift = 1.0 + 0.03 * (position - (len(curves) - 1) / 2)
        axes.errorbar(
            [point.num_completions * shift for point in points],
            [100 * point.mean for point in points],
            yerr=[
                [100 * max(point.mean - point.low, 0.0) for point in points],
                [100 * max(point.high - point.mean, 0.0) for point in points],
            ],
            label=label,
            color=_COLOURS[position % len(_COLOURS)],
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1.3,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("completions N of each problem")
    axes.set_ylabel("accuracy (%), 95 % intervals over problems")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    legend_below(axes)
    figure.savefig(path, dpi=110)


def draw_certainty(right: Sequence[float], *, wrong: Sequence[float], path: Path, title: str) -> None:
    """Writes one PNG: the densities of self-certainty (nats) of right and of wrong completions, and their means."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bins = np.histogram_bin_edges(
        [*right, *wrong], bins=min(_MAX_BINS, max(10, round((len(right) + len(wrong)) ** 0.5)))
    )
    for label, values, colour in (("right", right, "#55a868"), ("wrong", wrong, "#c44e52")):
        if values:
            axes.hist(values, bins=bins, density=True, alpha=0.5, color=colour, label=f"{label} ({len(values):,})")
            axes.axvline(float(np.mean(values)), color=colour, linestyle="--", linewidth=1.3)
    axes.set_xlabel("self-certainty of a completion (nats); dashed: means")
    axes.set_ylabel("density")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    legend_below(axes)
    figure.savefig(path, dpi=110)
