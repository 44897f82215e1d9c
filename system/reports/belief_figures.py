"""Figures of beliefs: heat maps of the posterior over steps. Called by the reporter while a run goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from system.algorithms.belief import Float64Array
from system.data.samples import ScoredSamples

KEY = "each row a hypothesis; green: the reference answer; bold: what the completion stated"
_MAX_ANSWER_CHARACTERS = 12
_MAX_PROMPT_CHARACTERS = 44


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PosteriorPanel:
    """The belief of one completion. Row t of `posterior` is the belief after t steps, columns are hypotheses."""

    title: str
    prompt: str
    posterior: Float64Array  # float64[S+1, K+1], 0 .. 1
    hypotheses: tuple[str, ...]  # K+1 answers; 0 = reference
    stated: int | None  # the hypothesis that the completion ended on; None: none of them


def posterior_panels(scored: Sequence[ScoredSamples], *, count: int) -> list[PosteriorPanel]:
    """The longest completion (most steps, then lowest index) of each of the first `count` groups that have beliefs."""
    with_beliefs = [item for item in scored if item.beliefs and item.scored.hypotheses is not None]
    panels = []
    for item in sorted(with_beliefs, key=lambda item: item.scored.group_id)[:count]:
        index = max(range(len(item.beliefs)), key=lambda number: (len(item.beliefs[number].step_values), -number))
        hypotheses = item.scored.hypotheses
        assert hypotheses is not None
        stated = int(hypotheses.stated[index])
        panels.append(
            PosteriorPanel(
                title=f"group {item.scored.group_id}, completion {index}",
                prompt=item.scored.group.prompt.text,
                posterior=item.beliefs[index].posterior,
                hypotheses=hypotheses.answers,
                stated=stated if stated >= 0 else None,
            )
        )
    return panels


def draw_posteriors(panels: Sequence[PosteriorPanel], *, path: Path, title: str) -> None:
    """Writes one PNG, the figure of `posteriors_figure`."""
    posteriors_figure(panels, title=title).savefig(path, dpi=110)


def posteriors_figure(panels: Sequence[PosteriorPanel], *, title: str) -> Figure:
    """A heat map for each panel under the end of its prompt, steps to the right, with a key to rows and colours.

    Raises ValueError without a panel.
    """
    if not panels:
        raise ValueError("no completion with a belief to draw")
    num_columns = min(4, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(max(3.6 * num_columns, 6.0), 3.0 * num_rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}\n{KEY}", fontsize=10)
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        image = axes.imshow(panel.posterior.T, aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0)
        axes.set_title(f"{panel.title}\n{_end_of(panel.prompt)}", fontsize=8, parse_math=False)
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
    return figure


def _end_of(prompt: str) -> str:
    """The last line of the prompt that says something, from its end."""
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    return text if len(text) <= _MAX_PROMPT_CHARACTERS else f"...{text[-_MAX_PROMPT_CHARACTERS + 3 :]}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_ANSWER_CHARACTERS else f"{text[: _MAX_ANSWER_CHARACTERS - 3]}..."
