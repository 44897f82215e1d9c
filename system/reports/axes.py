"""What all figures do with their axes: a legend beside the data, whole updates, nothing below zero that cannot be."""

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator


def legend_below(axes: Axes, *, num_columns: int = 3) -> None:
    """The legend under the axes, where it hides no data."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=num_columns, frameon=False)


def finish_updates_axes(axes: Axes, *, title: str, label: str) -> None:
    """Policy versions to the right, in whole numbers; values that are never negative start at zero or above."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("updates (policy version)", fontsize=9)
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left, right = axes.get_xlim()
    if right - left < 1:  # one update: no whole number but its own lies there
        axes.set_xlim(round(left) - 0.5, round(right) + 0.5)
    axes.grid(alpha=0.25)
    if axes.dataLim.ymin >= 0 > axes.get_ylim()[0]:
        axes.set_ylim(bottom=0)
