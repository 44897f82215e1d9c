"""What the reporter adds of its own: ids that are no tokens are counted and warned of once; what a step waited for."""

import io
import json
import time
from pathlib import Path

import pytest

from system.metrics import MetricTable
from system.records import ScoredGroup
from system.reports.display import Display
from system.reports.metrics import SYSTEM_METRICS
from system.reports.recorder import Recorder
from system.reports.reporter import Reporter
from system.reports.tracker import Tracker
from tests.trajectories import group_of, single_turn


def make_reporter(folder: Path, *, num_known_tokens: int = 200) -> tuple[Reporter, io.StringIO]:
    """And what its display writes."""
    table, stream = MetricTable(SYSTEM_METRICS), io.StringIO()
    reporter = Reporter(
        run_folder=folder,
        table=table,
        tracker=Tracker(
            folder, table=table, run_name="test", project="credence-tests", entity=None, wandb_mode="disabled",
            config={}, resume_policy_version=None,
        ),
        recorder=Recorder(folder),
        display=Display(num_updates=2, run_folder=folder, stream=stream),
        completions_per_table=1,
        session_start=time.perf_counter(),
        num_known_tokens=num_known_tokens,
    )  # fmt: skip
    return reporter, stream


def metrics_and_warnings(folder: Path, *, num_known_tokens: int) -> tuple[list[dict[str, float]], str]:
    """Two updates of a group with 3 + 1 sampled tokens: 5, 190, 191 and 138."""
    reporter, stream = make_reporter(folder, num_known_tokens=num_known_tokens)
    group = group_of(single_turn([5, 190, 191], prompt=[191]), single_turn([138], prompt=[191], index=1))
    for version in (1, 2):
        groups = [ScoredGroup(group=group, terms=((), ()))]
        reporter.log_update(version, metrics=reporter.new_metrics(), groups=groups)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["metrics"] for line in lines], stream.getvalue()


def test_ids_beyond_the_tokenizer_are_counted_and_warned_of_once(tmp_path: Path) -> None:
    values, shown = metrics_and_warnings(tmp_path, num_known_tokens=139)
    assert [line["completion/unknown_tokens_fraction"] for line in values] == [0.5, 0.5]  # 190 and 191 of four
    assert shown.count("50.00% of the sampled ids are 139 or more, which the tokenizer lacks") == 1


def test_a_tokenizer_that_knows_all_is_not_warned_of(tmp_path: Path) -> None:
    values, shown = metrics_and_warnings(tmp_path, num_known_tokens=192)
    assert values[0]["completion/unknown_tokens_fraction"] == pytest.approx(0.0)
    assert "sampled ids" not in shown


def test_what_the_newest_step_waited_for_is_in_its_line_and_in_the_status(tmp_path: Path) -> None:
    reporter, stream = make_reporter(tmp_path)
    reporter.enter_phase("rollout")
    assert json.loads((tmp_path / "status.json").read_text())["bottleneck"] is None
    metrics = reporter.new_metrics()
    metrics.add("learner/busy_fraction", 0.25)
    metrics.add("wait/checkpoint_fraction", 0.75)
    reporter.log_update(1, metrics=metrics, groups=[])
    reporter.enter_phase("rollout")
    sentence = "learner waited 75 % for a checkpoint; trained 25 %"
    assert json.loads((tmp_path / "status.json").read_text())["bottleneck"] == sentence
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["bottleneck"] == sentence
    assert sentence in stream.getvalue()
