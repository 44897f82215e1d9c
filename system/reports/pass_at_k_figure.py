"""What an answer costs: pass@k against the tokens of k completions. Called by the reporter and `credence compare`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from system.reports.axes import legend_below
from system.reports.metric_history import HistoryLine, MetricHistory


def draw_pass_at_k(history: MetricHistory, *, path: Path, title: str) -> bool:
    """Writes one PNG: pass@k against the tokens of k completions, at the first and the newest full evaluation.

    Returns False, and writes nothing, when there is no evaluation with several completions for each problem.
    """
    full = [line for line in history.lines_with("eval/length_mean_tokens") if len(pass_at_k_points(line)) > 1]
    if not full:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for line in (full[0], full[-1]) if len(full) > 1 else full:
        draw_tokens_curve(axes, points=pass_at_k_points(line), label=f"after {line.policy_version} updates")
    finish_tokens_axes(axes, title=title)
    figure.savefig(path, dpi=110)
    return True


def pass_at_k_points(line: HistoryLine) -> list[tuple[float, float]]:
    """(tokens that k completions take on average, pass@k) for ascending k, from the metrics of an evaluation."""
    accuracies = {1: line.values["eval/accuracy_sampled"]} | {
        int(name.removeprefix("eval/pass_at_")): value
        for name, value in line.values.items()
        if name.startswith("eval/pass_at_")
    }
    return [(k * line.values["eval/length_mean_tokens"], accuracies[k]) for k in sorted(accuracies)]


def draw_tokens_curve(axes: Axes, *, points: Sequence[tuple[float, float]], label: str) -> None:
    axes.plot([tokens for tokens, _ in points], [accuracy for _, accuracy in points], marker="o", label=label)


def finish_tokens_axes(axes: Axes, *, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("tokens of k completions")
    axes.set_ylabel("pass@k on held-out problems")
    axes.set_ylim(0, min(1.0, max(axes.dataLim.ymax * 1.1, 0.05)))
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    legend_below(axes)
