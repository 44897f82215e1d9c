"""Figures of beliefs and of what an answer costs: heat maps of the posterior, pass@k against tokens.

Called by the reporter while a run goes on, and by the summary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from system.algorithms.belief import Float64Array
from system.data.samples import ScoredSamples
from system.runtime.metric_history import HistoryLine, MetricHistory

_MAX_ANSWER_CHARACTERS = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PosteriorPanel:
    """The belief of one completion. Row t of `posterior` is the belief after t steps, columns are hypotheses."""

    title: str
    posterior: Float64Array  # float64[S+1, K+1], 0 .. 1
    hypotheses: tuple[str, ...]  # K+1 answers; 0 = reference
    stated: int | None  # the hypothesis that the completion ended on; None: none of them


def posterior_panels(scored: Sequence[ScoredSamples], *, count: int) -> list[PosteriorPanel]:
    """The longest completion (most steps, then lowest index) of each of the first `count` groups that have beliefs."""
    with_beliefs = [item for item in scored if item.beliefs and item.group.hypotheses is not None]
    panels = []
    for item in sorted(with_beliefs, key=lambda item: item.group.group_id)[:count]:
        index = max(range(len(item.beliefs)), key=lambda number: (len(item.beliefs[number].step_values), -number))
        hypotheses = item.group.hypotheses
        assert hypotheses is not None
        stated = int(hypotheses.stated[index])
        panels.append(
            PosteriorPanel(
                title=f"group {item.group.group_id}, completion {index}",
                posterior=item.beliefs[index].posterior,
                hypotheses=hypotheses.answers,
                stated=stated if stated >= 0 else None,
            )
        )
    return panels


def draw_posteriors(panels: Sequence[PosteriorPanel], *, path: Path, title: str) -> None:
    """Writes one PNG: a heat map for each panel, steps to the right, hypotheses down, the stated answer in bold.

    Raises ValueError without a panel.
    """
    if not panels:
        raise ValueError("no completion with a belief to draw")
    num_columns = min(4, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(3.6 * num_columns, 2.8 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        image = axes.imshow(panel.posterior.T, aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0)
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel("steps taken", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yticks(range(len(panel.hypotheses)), [_short(text) for text in panel.hypotheses], fontsize=8)
        labels = axes.get_yticklabels()
        for label in labels:
            label.set_parse_math(False)  # an answer may hold a $ that begins no formula of matplotlib's
        if panel.stated is not None:
            labels[panel.stated].set_fontweight("bold")
        labels[0].set_color("#55a868")  # the reference
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=list(grid), label="weight of the hypothesis", shrink=0.8)
    figure.savefig(path, dpi=110)


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
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_ANSWER_CHARACTERS else f"{text[: _MAX_ANSWER_CHARACTERS - 3]}..."
