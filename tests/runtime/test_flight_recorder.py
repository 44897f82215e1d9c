"""The ring keeps the newest updates and those that can be replayed whole; a run never fails for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from system.algorithms.base import Credit
from system.data.step_files import StepFile
from system.metrics import MetricSet
from system.records import Metric, StepResult
from system.runtime.batch_preparation import PreparedBatch
from system.runtime.flight_recorder import FlightRecorder, ring
from tests.data.recorded_steps import make_step
from tests.runtime.controller_fakes import METRICS, FakeRun, make_config
from tests.virtual_time import run_in_virtual_time

CONFIG = make_config(run__flight_recorder_steps=2)


def prepared(policy_version: int) -> PreparedBatch:
    step = make_step(CONFIG, policy_version=policy_version)
    return PreparedBatch(
        policy_version=policy_version,
        groups=list(step.groups),
        credit=Credit(groups=step.credit),
        batch=step.batch,
        metrics=MetricSet(METRICS),
        taken_at=0.0,
        rescored_at=0.0,
    )


def result(policy_version: int, *, has_new_weights: bool = True) -> StepResult:
    metrics = (Metric(name="learner/loss", value=0.25),)
    return StepResult(policy_version=policy_version, has_new_weights=has_new_weights, metrics=metrics)


class Alerts:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, title: str, *, text: str) -> None:
        self.texts.append(text)


def record(recorder: FlightRecorder, update: int, *, has_new_weights: bool = True) -> None:
    recorder.begin(prepared(update - 1), policy_version=update - 1)
    recorder.finish(result(update if has_new_weights else update - 1, has_new_weights=has_new_weights))


def names(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "flight_recorder").iterdir())


def test_the_newest_stay_and_those_that_follow_a_checkpoint(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, config=CONFIG, alert=Alerts())
    (tmp_path / "checkpoints" / "update_000001").mkdir(parents=True)
    for update in range(1, 6):
        record(recorder, update)
    assert names(tmp_path) == ["update_000002.npz", "update_000004.npz", "update_000005.npz"]
    assert [entry.update for entry in ring(tmp_path)] == [2, 4, 5]
    (tmp_path / "checkpoints" / "update_000001").rmdir()
    record(recorder, 6)
    assert names(tmp_path) == ["update_000005.npz", "update_000006.npz"]


def test_a_run_that_goes_back_keeps_what_it_wrote_last(tmp_path: Path) -> None:
    first = FlightRecorder(tmp_path, config=CONFIG, alert=Alerts())
    for update in (7, 8, 9):
        record(first, update)
    for number, path in enumerate(sorted((tmp_path / "flight_recorder").iterdir())):
        os.utime(path, (number, number))  # long ago
    resumed = FlightRecorder(tmp_path, config=CONFIG, alert=Alerts())
    record(resumed, 5)
    assert names(tmp_path) == ["update_000005.npz", "update_000009.npz"]


def test_the_batch_that_ended_a_run_and_the_one_that_was_skipped_are_there(tmp_path: Path) -> None:
    recorder = FlightRecorder(tmp_path, config=CONFIG, alert=Alerts())
    record(recorder, 3, has_new_weights=False)
    recorder.begin(prepared(2), policy_version=2)
    assert names(tmp_path) == ["update_000003.pending.npz", "update_000003.skipped.npz"]
    assert {entry.state for entry in ring(tmp_path)} == {"pending", "skipped"}
    pending, skipped = (StepFile(tmp_path / "flight_recorder" / name) for name in names(tmp_path))
    assert pending.result() is None
    assert skipped.result() == result(2, has_new_weights=False)
    assert pending.step(evidence=None).policy_version == skipped.step(evidence=None).policy_version == 2


def test_nothing_is_written_when_it_is_off(tmp_path: Path) -> None:
    record(FlightRecorder(tmp_path, config=make_config(run__flight_recorder_steps=0), alert=Alerts()), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    alerts = Alerts()
    (tmp_path / "flight_recorder").write_text("a file in the place of the folder")
    recorder = FlightRecorder(tmp_path, config=CONFIG, alert=alerts)
    for update in (1, 2):
        record(recorder, update)
    assert len(alerts.texts) == 1
    assert "flight_recorder" in alerts.texts[0]
    assert "the run goes on without it" in alerts.texts[0]


def test_what_a_killed_run_left_half_written_goes_away(tmp_path: Path) -> None:
    folder = tmp_path / "flight_recorder"
    folder.mkdir()
    (folder / ".update_000009.pending.npz.tmp").write_bytes(b"half")
    record(FlightRecorder(tmp_path, config=CONFIG, alert=Alerts()), 1)
    assert names(tmp_path) == ["update_000001.npz"]


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_the_controller_records_what_the_learner_trained(max_staleness: int, tmp_path: Path) -> None:
    run = FakeRun(
        make_config(run__flight_recorder_steps=10, controller__max_staleness=max_staleness), run_folder=tmp_path
    )
    run.learner.not_finite = frozenset({3})
    run_in_virtual_time(run.run())

    states: dict[Any, list[int]] = {}
    for entry in ring(tmp_path):
        step = StepFile(entry.path).step(evidence=None)
        assert step.policy_version == entry.update - 1
        states.setdefault(entry.state, []).append(entry.update)
        prompts = {int(scored.group.prompt.token_ids[0]) for scored in step.groups}
        packed = {
            int(token)
            for rank in step.batch.steps_by_rank
            for micro_batch in rank[0].micro_batches
            for token in np.asarray(micro_batch.token_ids)[micro_batch.sequence_starts[:-1]]
        }
        assert packed == prompts
        if entry.state == "trained":
            assert sorted(prompts) == run.learner.trained[entry.update - 1]
        else:
            assert 3 in prompts
    assert sorted(states["trained"]) == [1, 2, 3, 4]
    assert len(states["skipped"]) == 1
