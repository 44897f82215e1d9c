"""Heat maps that an algorithm draws of a few completions. Called by the reporter while a run goes on."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from system.algorithms.base import HeatMap, HeatMapFigure

_MAX_LABEL_CHARACTERS = 12
_MAX_SUBTITLE_CHARACTERS = 44


def draw_heat_maps(panels: Sequence[HeatMap], *, figure: HeatMapFigure, path: Path, title: str) -> None:
    """Writes one PNG, the page of `heat_maps_page`."""
    heat_maps_page(panels, figure=figure, title=title).savefig(path, dpi=110)


def heat_maps_page(panels: Sequence[HeatMap], *, figure: HeatMapFigure, title: str) -> Figure:
    """A heat map for each panel, rows down, with a key to rows and colours. Raises ValueError without a panel."""
    if not panels:
        raise ValueError("no panel to draw")
    num_columns = min(4, len(panels))
    num_rows = -(-len(panels) // num_columns)
    page = Figure(figsize=(max(3.6 * num_columns, 6.0), 3.0 * num_rows + 0.4), layout="constrained")
    FigureCanvasAgg(page)
    page.suptitle(f"{title}\n{figure.key}", fontsize=10)
    grid = page.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        image = axes.imshow(panel.values, aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0)
        axes.set_title(f"{panel.title}\n{_end_of(panel.subtitle)}", fontsize=8, parse_math=False)
        axes.set_xlabel(figure.column_axis, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yticks(range(len(panel.row_labels)), [_short(text) for text in panel.row_labels], fontsize=8)
        labels = axes.get_yticklabels()
        for label in labels:
            label.set_parse_math(False)  # a label may hold a $ that begins no formula of matplotlib's
        if panel.bold_row is not None:
            labels[panel.bold_row].set_fontweight("bold")
        labels[0].set_color("#55a868")
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    page.colorbar(image, ax=list(grid), label=figure.colour_axis, shrink=0.8)
    return page


def _end_of(text: str) -> str:
    """The last line that says something, from its end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    return last if len(last) <= _MAX_SUBTITLE_CHARACTERS else f"...{last[-_MAX_SUBTITLE_CHARACTERS + 3 :]}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_LABEL_CHARACTERS else f"{text[: _MAX_LABEL_CHARACTERS - 3]}..."
