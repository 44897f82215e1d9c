"""Figures of a run: heat maps of an algorithm, and pass@k against tokens."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from system.algorithms.base import HeatMap, HeatMapFigure
from system.reports.heat_maps import draw_heat_maps, heat_maps_page
from system.reports.metric_history import HistoryLine, MetricHistory
from system.reports.pass_at_k_figure import (
    draw_pass_at_k,
    draw_tokens_curve,
    finish_tokens_axes,
    pass_at_k_points,
)

FIGURE = HeatMapFigure(
    folder="maps", metric="credit/maps", column_axis="steps", colour_axis="weight", key="rows: answers"
)


def test_heat_maps_are_drawn(tmp_path: Path) -> None:
    panel = HeatMap(
        title="group 3",
        subtitle="Solve:\n1+2:\n",
        values=np.linspace(0, 1, 10, dtype=np.float32).reshape(2, 5),
        row_labels=("3", r"$\frac{$ and more"),  # no formula that matplotlib could read
        bold_row=1,
    )
    draw_heat_maps([panel, panel], figure=FIGURE, path=tmp_path / "maps.png", title="maps")
    assert imread(tmp_path / "maps.png").std() > 0.05
    page = heat_maps_page([panel], figure=FIGURE, title="maps")
    assert page.get_suptitle() == "maps\nrows: answers"
    assert page.axes[0].get_title() == "group 3\n1+2:"
    with pytest.raises(ValueError, match="no panel"):
        draw_heat_maps([], figure=FIGURE, path=tmp_path / "none.png", title="")


def test_pass_at_k_is_drawn_against_the_tokens_of_k_completions(tmp_path: Path) -> None:
    values = {
        "eval/accuracy_sampled": 0.25,
        "eval/length_mean_tokens": 30.0,
        "eval/pass_at_8": 0.5,
        "eval/pass_at_2": 0.4,
    }
    full = HistoryLine(policy_version=0, values=values)
    assert pass_at_k_points(full) == [(30.0, 0.25), (60.0, 0.4), (240.0, 0.5)]
    single = HistoryLine(policy_version=20, values={"eval/accuracy_sampled": 0.3, "eval/length_mean_tokens": 31.0})
    path = tmp_path / "pass_at_k.png"
    assert not draw_pass_at_k(MetricHistory(lines=(single,)), path=path, title="run")
    assert not path.exists()
    assert draw_pass_at_k(MetricHistory(lines=(full, single)), path=path, title="run")
    assert path.exists()


def test_pass_at_k_of_a_policy_that_solves_nothing_stays_above_zero() -> None:
    axes = Figure().subplots()
    draw_tokens_curve(axes, points=[(30.0, 0.0), (60.0, 0.0)], label="before")
    finish_tokens_axes(axes, title="pass@k")
    assert axes.get_ylim() == (0.0, 0.05)
