"""The summary adds up what metrics.jsonl says, and a run without an update still gets one."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from system.metrics import MetricTable
from system.reports.curves import curves_figure, draw_curves
from system.reports.guards import GUARD_METRICS
from system.reports.metric_history import read_history
from system.reports.metrics import SYSTEM_METRICS
from system.reports.recorder import JsonLinesFile
from system.reports.summary import write_summary
from system.runtime.ledger import Ledger, LedgerTotals


@dataclass(frozen=True, kw_only=True)
class Outcome:
    policy_version: int
    completion_tokens: int
    canary_max_abs_diff: float
    after: object | None = None
    stopped_by: str = "num_updates"


def evaluation(*, sampled: float) -> dict[str, float]:
    greedy = sampled + 0.1
    return {
        "eval/accuracy_sampled": sampled,
        "eval/accuracy_sampled_low": sampled - 0.02,
        "eval/accuracy_sampled_high": sampled + 0.02,
        "eval/accuracy_greedy": greedy,
        "eval/accuracy_greedy_low": greedy - 0.04,
        "eval/accuracy_greedy_high": greedy + 0.04,
        "eval/pass_at_2": sampled + 0.1,
        "eval/pass_at_8": sampled + 0.3,
        "eval/num_problems": 500.0,
    }


def totals(num_trained: int) -> LedgerTotals:
    ledger = Ledger()
    for _ in range(num_trained + 1):
        ledger.count("leased")
        ledger.count("generated")
        ledger.count("scored")
    for _ in range(num_trained):
        ledger.count("trained")
    ledger.count_dropped("run_ended")
    return ledger.totals(in_flight=0)


def write_metrics(folder: Path, *, num_updates: int, evaluations: dict[int, dict[str, float]]) -> None:
    table = MetricTable(SYSTEM_METRICS, GUARD_METRICS)
    with JsonLinesFile(folder / "metrics.jsonl", keep_until_version=None) as lines:
        for version in range(num_updates + 1):
            values = dict(evaluations.get(version, {}))
            if version > 0:
                values |= {
                    "train/accuracy": 0.3 + 0.01 * version,
                    "reward/mean": 0.3 + 0.01 * version,
                    "completion/length_mean_tokens": 30.0 + version,
                    "staleness/mean_versions": 0.5,
                    "staleness/max_versions": float(version % 3),
                    "reward/num_invalid": 2.0,
                    "reward/invalid_timeout": 2.0,
                    "weight_sync/bytes": 1000.0,
                    "reward/self_certainty_mean": 2.0,
                    "guard/length_collapse": float(version in (7, 8)),
                    "guard/repetition": 0.0,
                }
            assert all(table.find(name) for name in values)
            lines.append(
                {
                    "policy_version": version,
                    "metrics": values,
                    "timing": {"time/rollout_seconds": 1.5, "time/train_seconds": 0.5}
                    | ({"time/start_seconds": 150.0} if version == 0 else {}),
                }
            )


def test_summary_says_what_was_gained_and_what_it_took(tmp_path: Path) -> None:
    evaluations = {0: evaluation(sampled=0.25), 5: evaluation(sampled=0.28), 10: evaluation(sampled=0.375)}
    write_metrics(tmp_path, num_updates=10, evaluations=evaluations)
    outcome = Outcome(policy_version=10, completion_tokens=12_345, canary_max_abs_diff=2.5e-6, after=evaluations[10])
    page = write_summary(tmp_path, outcome=outcome, ledger=totals(20), seconds=600.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy_before"] == 0.25
    assert summary["accuracy_after"] == 0.375
    assert summary["accuracy_after_interval"] == pytest.approx([0.355, 0.395])
    assert summary["accuracy_greedy_after"] == pytest.approx(0.475)
    assert summary["pass_at_8_before"] == pytest.approx(0.55)
    assert summary["num_updates"] == 10
    assert summary["seconds"] == 600.0
    assert summary["canary_max_abs_diff"] == 2.5e-6
    assert summary["seconds_by_phase"]["rollout"] == pytest.approx(11 * 1.5)
    assert summary["seconds_by_phase"]["start"] == pytest.approx(150.0)
    assert sum(summary["seconds_by_phase"].values()) == pytest.approx(600.0)
    assert "| start | 150.0 | 25% |" in page
    assert summary["staleness_max"] == 2.0
    assert summary["invalid_rewards_by_reason"] == {"timeout": 20.0}
    assert summary["alarms"] == {"length_collapse": 7}
    assert "- Signs of reward hacking: length_collapse from update 7." in page
    assert summary["ledger"]["leased"] == 21
    assert summary["ledger"]["dropped_by_reason"] == {"run_ended": 1}
    assert summary["ledger_balanced"] is True
    assert "| sampled (pass@1) | 25.0% (23.0% to 27.0%) | 37.5% (35.5% to 39.5%) | +12.5 |" in page
    assert "21 leased = 20 trained + 1 dropped + 0 in flight (balanced)" in page
    assert (tmp_path / "summary.md").read_text() == page
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_checkpoint_is_named(tmp_path: Path) -> None:
    outcome = Outcome(policy_version=1, completion_tokens=1, canary_max_abs_diff=0.0)
    for best in (("update_000080", 0.5), None):
        page = write_summary(
            tmp_path, outcome=outcome, ledger=Ledger().totals(in_flight=0), seconds=1.0, best_checkpoint=best
        )
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert (summary["best_checkpoint"], summary["best_checkpoint_value"]) == (best or (None, None))
        assert ("- Best checkpoint: `checkpoints/update_000080` (50.0%)." in page) == (best is not None)


def test_run_without_an_update_has_a_summary(tmp_path: Path) -> None:
    outcome = Outcome(policy_version=0, completion_tokens=0, canary_max_abs_diff=0.0, stopped_by="max_seconds")
    page = write_summary(tmp_path, outcome=outcome, ledger=Ledger().totals(in_flight=0), seconds=1.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy_before"] is None
    assert summary["num_updates"] == 0
    assert summary["ledger_balanced"] is True
    assert "| sampled (pass@1) | - | - | - |" in page
    assert (tmp_path / "curves.png").exists()


def test_last_evaluation_of_a_stopped_run_is_not_taken_for_its_end(tmp_path: Path) -> None:
    write_metrics(tmp_path, num_updates=7, evaluations={0: evaluation(sampled=0.25), 5: evaluation(sampled=0.28)})
    outcome = Outcome(policy_version=7, completion_tokens=10, canary_max_abs_diff=0.0, stopped_by="SIGTERM")
    write_summary(tmp_path, outcome=outcome, ledger=totals(14), seconds=60.0)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy_before"] == 0.25
    assert summary["accuracy_after"] is None


@pytest.mark.parametrize("num_updates", [0, 2, 30])
def test_axes_of_the_curves_have_whole_updates_their_own_place_and_nothing_over_the_data(
    tmp_path: Path, num_updates: int
) -> None:
    write_metrics(tmp_path, num_updates=num_updates, evaluations={0: evaluation(sampled=0.25)})
    figure = curves_figure(read_history(tmp_path / "metrics.jsonl"), title="curves")
    figure.canvas.draw()
    places = [axes.get_position().bounds for axes in figure.axes]
    assert len(set(places)) == len(places), "two axes in one place"
    for axes in figure.axes:
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
        legend = axes.get_legend()
        if legend is not None:
            assert legend.get_window_extent().y1 <= axes.get_window_extent().y0
    lowest = {axes.get_title(): axes.get_ylim()[0] for axes in figure.axes}
    assert lowest["Accuracy"] >= 0
    assert lowest["Length of completions"] >= 0 or num_updates == 0


@pytest.mark.parametrize("num_updates", [0, 1])
def test_curves_of_the_shortest_runs_are_drawn_without_a_warning(tmp_path: Path, num_updates: int) -> None:
    write_metrics(tmp_path, num_updates=num_updates, evaluations={0: evaluation(sampled=0.25)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves(read_history(tmp_path / "metrics.jsonl"), path=tmp_path / "curves.png", title="short")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
