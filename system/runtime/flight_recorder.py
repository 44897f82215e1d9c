"""The newest updates of a run, whole, in its folder: RUN_DIR/flight_recorder/.

    update_000123.pending.npz   while the batch is trained; left behind when the run ends in that time
    update_000123.npz           trained
    update_000123.skipped.npz   its gradient was NaN or infinite: no update came of it

A ring: the newest `run.flight_recorder_steps` stay, and those whose weights lie in a checkpoint of this run, because
their loss can be computed again. Written in the thread of the reports, so that it waits for nobody and nobody for it.
Read by `credence replay`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from system.config.algorithms import evidence_of
from system.config.load import to_dict
from system.config.schema import Config
from system.data.file_stamps import sync_folder
from system.data.record_columns import require_storable
from system.data.step_files import RecordedStep, add_result, write_step
from system.records import StepResult
from system.runtime.batch_preparation import PreparedBatch
from system.runtime.checkpoint import checkpoint_directory

StepState = Literal["trained", "skipped", "pending"]
_FOLDER = "flight_recorder"
_NAME = re.compile(r"update_(\d{6,})(?:\.(skipped|pending))?\.npz")


@dataclass(frozen=True, slots=True, kw_only=True)
class RingEntry:
    """One file of the ring."""

    path: Path
    update: int
    state: StepState


class FlightRecorder:
    """`begin` before a batch is trained, `finish` after it. Neither raises OSError: the run goes on without records."""

    def __init__(
        self, run_folder: Path, *, config: Config, alert: Callable[..., None], num_steps: int | None = None
    ) -> None:
        """`alert(title, text=...)` tells the user. `num_steps` None: run.flight_recorder_steps; 0 writes nothing."""
        self._run_folder = run_folder
        self._config = to_dict(config)
        self._num_steps = config.run.flight_recorder_steps if num_steps is None else num_steps
        evidence = evidence_of(config.algorithm)
        self._evidence: type | None = evidence.record if evidence is not None else None
        if self._evidence is not None:
            require_storable(self._evidence)
        self._alert = alert
        self._pending: Path | None = None

    def begin(self, prepared: PreparedBatch, *, policy_version: int) -> None:
        """The batch that is about to be trained on the weights of `policy_version`."""
        if not self._num_steps:
            return
        step = RecordedStep(
            policy_version=policy_version,
            groups=tuple(prepared.groups),
            credit=prepared.credit.groups,
            batch=prepared.batch,
        )
        path = _path(self._run_folder, update=policy_version + 1, state="pending")
        try:
            path.parent.mkdir(exist_ok=True)
            for left_behind in path.parent.glob(".update_*.tmp"):
                left_behind.unlink()
            write_step(path, step, config=self._config, evidence=self._evidence)
        except OSError as error:
            self._give_up(error)
        else:
            self._pending = path

    def finish(self, result: StepResult) -> None:
        """What came of the batch of the last `begin`."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        state: StepState = "trained" if result.has_new_weights else "skipped"
        try:
            add_result(pending, result)
            pending.replace(_path(self._run_folder, update=_update_of(pending), state=state))
            sync_folder(pending.parent)
            self._remove_old()
        except OSError as error:
            self._give_up(error)

    def _remove_old(self) -> None:
        for entry in ring(self._run_folder)[: -self._num_steps]:
            if not checkpoint_directory(self._run_folder, policy_version=entry.update - 1).is_dir():
                entry.path.unlink()

    def _give_up(self, error: OSError) -> None:
        self._num_steps = 0
        where = error.filename or self._run_folder / _FOLDER
        self._alert("Flight recorder stops", text=f"{where}: {error.strerror}; the run goes on without it")


def ring(run_folder: Path) -> list[RingEntry]:
    """What is recorded, by the time of its end, oldest first: a resumed run repeats numbers."""
    files = [path for path in (run_folder / _FOLDER).glob("update_*.npz") if _NAME.fullmatch(path.name)]
    files.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
    return [RingEntry(path=path, update=_update_of(path), state=_state_of(path)) for path in files]


def _path(run_folder: Path, *, update: int, state: StepState) -> Path:
    kind = "" if state == "trained" else f".{state}"
    return run_folder / _FOLDER / f"update_{update:06d}{kind}.npz"


def _update_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _state_of(path: Path) -> StepState:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return "skipped" if match[2] == "skipped" else "pending" if match[2] == "pending" else "trained"
