"""`credence train`: opens the run folder, starts Ray and the actors, runs the controller, writes the summary.

Whatever ends the run (its last update, an error, Ctrl-C, SIGTERM), every process that it started is gone
before the command returns.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from system.commands.metrics_reference import RUN_METRICS
from system.commands.resume_point import open_resumed
from system.commands.run_controllers import RunControllers
from system.commands.run_inputs import RunInputs, read_inputs
from system.commands.run_learners import RunLearners
from system.config.load import dump_yaml, split_resume, to_dict
from system.config.machine import free_run_folder
from system.config.run_schema import CheckpointConfig
from system.config.schema import Config
from system.errors import ClusterLostError
from system.metrics import MetricTable
from system.reports.display import Display
from system.reports.recorder import Recorder
from system.reports.reporter import Reporter
from system.reports.summary import write_summary
from system.reports.tracker import Tracker
from system.runtime.checkpoint import CheckpointStore, RunState
from system.runtime.control_loop import control_of_run
from system.runtime.flight_recorder import FlightRecorder
from system.runtime.learner_recovery import LearnerRecovery, Position
from system.runtime.learner_restarts import LearnerRestarts
from system.runtime.ledger import LedgerTotals
from system.runtime.parts import Outcome
from system.runtime.placement import Placement
from system.runtime.pools import make_pools
from system.runtime.preemption import Preemption
from system.runtime.run_phases import note_cluster_loss
from system.runtime.session import run_on_ray
from system.runtime.watchdog import Watchdog, make_watchdog

_SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Where this run writes, and what an earlier session left there."""

    path: Path
    checkpoints: CheckpointStore
    resumed_from: Path | None  # checkpoint
    resumed: RunState | None


def main_train(config: Config, *, resume: str | None = None) -> int:
    """Run to the end and return the exit code: 0, 130 after Ctrl-C, 143 after SIGTERM.

    Raises CredenceError subclasses for what a user can act on.
    """
    session_start = time.perf_counter()
    folder = open_run_folder(config, resume=resume)
    inputs = read_inputs(config, cursor=folder.resumed.cursor if folder.resumed else None)
    seconds_before = folder.resumed.seconds if folder.resumed else 0.0

    def elapsed_seconds() -> float:
        return seconds_before + time.perf_counter() - session_start

    def last_words(error: ClusterLostError) -> str:
        note_cluster_loss(folder.path)
        return f"{error}. {_how_to_continue(folder)}"

    preemption = Preemption()
    try:
        stopped_by = run_on_ray(
            config,
            lambda: _train(
                config,
                folder=folder,
                inputs=inputs,
                preemption=preemption,
                session_start=session_start,
                elapsed_seconds=elapsed_seconds,
            ),
            preemption=preemption,
            last_words=last_words,
        )
    except ClusterLostError as error:
        raise ClusterLostError(last_words(error)) from error
    finally:
        folder.checkpoints.discard_partial()
    if stopped_by is None:
        return 0
    print(f"Stopped by {stopped_by.name}. {_how_to_continue(folder)}", file=sys.stderr)
    return 128 + stopped_by


def open_run_folder(config: Config, *, resume: str | None) -> RunFolder:
    """The folder of a new run, run.directory/run.name (or the next free -2, -3, ...), or the one to resume.

    A new one is made when Ray runs. Raises CheckpointError when there is no whole checkpoint, or when the one that was
    asked for is not.
    """
    if resume is not None:
        directory, policy_version = split_resume(resume)
        path = Path(directory).resolve()
        checkpoints = _store(path, config=config.checkpoint)
        checkpoint, state = open_resumed(checkpoints, policy_version=policy_version, run_folder=path)
        return RunFolder(path=path, checkpoints=checkpoints, resumed_from=checkpoint, resumed=state)
    path = free_run_folder(config.run)
    return RunFolder(path=path, checkpoints=_store(path, config=config.checkpoint), resumed_from=None, resumed=None)


def _store(run_folder: Path, *, config: CheckpointConfig) -> CheckpointStore:
    return CheckpointStore(run_folder, keep=config.keep, keep_best=config.keep_best, best_metric=config.best_metric)


async def _train(
    config: Config,
    *,
    folder: RunFolder,
    inputs: RunInputs,
    preemption: Preemption,
    session_start: float,
    elapsed_seconds: Callable[[], float],
) -> None:
    folder.path.mkdir(parents=True, exist_ok=folder.resumed is not None)
    recorder = Recorder(folder.path)
    recorder.write_config(dump_yaml(config))
    recorder.write_versions()
    table = MetricTable(RUN_METRICS, inputs.algorithm.metric_definitions)
    tracker = Tracker(
        folder.path,
        table=table,
        run_name=folder.path.name,
        project=config.tracker.project,
        entity=config.tracker.entity,
        wandb_mode=config.tracker.wandb_mode,
        config=to_dict(config),
        resume_policy_version=folder.resumed.policy_version if folder.resumed else None,
    )
    exit_code = 1
    try:
        limit = config.run.max_seconds
        seconds_left = None if limit is None else limit - elapsed_seconds()
        with Display(num_updates=config.run.num_updates, run_folder=folder.path, seconds_left=seconds_left) as display:
            reporter = Reporter(
                run_folder=folder.path,
                table=table,
                tracker=tracker,
                recorder=recorder,
                display=display,
                completions_per_table=config.tracker.completions_per_table,
                session_start=session_start,
                num_known_tokens=inputs.num_known_tokens,
            )
            watchdog = make_watchdog(
                config, run_folder=folder.path, alert=reporter.alert, advice=lambda: _how_to_continue(folder)
            )
            async with watchdog.guard():
                outcome, ledger = await _train_with_actors(
                    config,
                    folder=folder,
                    inputs=inputs,
                    reporter=reporter,
                    preemption=preemption,
                    watchdog=watchdog,
                    elapsed_seconds=elapsed_seconds,
                )
        exit_code = 0
    finally:
        tracker.close(exit_code=exit_code)
    _summarise(folder, outcome=outcome, ledger=ledger, seconds=elapsed_seconds())


async def _train_with_actors(
    config: Config,
    *,
    folder: RunFolder,
    inputs: RunInputs,
    reporter: Reporter,
    preemption: Preemption,
    watchdog: Watchdog,
    elapsed_seconds: Callable[[], float],
) -> tuple[Outcome, LedgerTotals]:
    """Create all actors, run controllers until one comes to the end, and take the actors down however it ends."""
    placement = Placement(config=config)
    learners = RunLearners(config=config, inputs=inputs, placement=placement, run_folder=folder.path)
    pools = make_pools(config, placement=placement)
    restarts = LearnerRestarts(max_restarts=config.learner.max_restarts)

    control = control_of_run(folder.path, config=config, pools=pools)
    controllers = RunControllers(
        config=config,
        inputs=inputs,
        pools=pools,
        checkpoints=folder.checkpoints,
        reporter=reporter,
        preemption=preemption,
        restarts=restarts,
        flight_recorder=FlightRecorder(folder.path, config=config, alert=reporter.alert),
        watchdog=watchdog,
        control=control,
        elapsed_seconds=elapsed_seconds,
    )
    recovery = LearnerRecovery(
        learners=learners,
        pools=pools,
        checkpoints=folder.checkpoints,
        reporter=reporter,
        restarts=restarts,
        make_controller=controllers.make,
        learner_group=learners.create(),
    )
    try:
        reporter.enter_phase("start")
        position = Position(checkpoint=folder.resumed_from, state=folder.resumed)
        async with asyncio.TaskGroup() as starts:
            starts.create_task(learners.start(recovery.learner_group, position))
            starts.create_task(pools.start())
        controller = await recovery.run(position)
        reporter.draw_newest_heat_maps()
        controller.buffer.drop_all(reason="run_ended")
        return controller.outcome, controller.buffer.totals()
    finally:
        reporter.enter_phase("shutdown")
        await control.close()
        await asyncio.gather(
            recovery.learner_group.shutdown(seconds=_SHUTDOWN_SECONDS), pools.shutdown(seconds=_SHUTDOWN_SECONDS)
        )


def _summarise(folder: RunFolder, *, outcome: Outcome, ledger: LedgerTotals, seconds: float) -> None:
    best = folder.checkpoints.best()
    print(write_summary(folder.path, outcome=outcome, ledger=ledger, seconds=seconds, best_checkpoint=best))


def _how_to_continue(folder: RunFolder) -> str:
    if not folder.checkpoints.complete():
        return f"There is no checkpoint yet; {folder.path} holds what was logged."
    return f"Continue from {folder.checkpoints.latest().name}: credence train --resume {folder.path}"
