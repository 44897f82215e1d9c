"""`credence train`: opens the run folder, starts Ray and the actors, runs the controller, writes the summary.

Whatever ends the run (its last update, an error, Ctrl-C, SIGTERM), every process that it started is gone
before the command returns.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from system.commands.metrics_reference import RUN_METRICS
from system.commands.resume_point import open_resumed
from system.commands.run_inputs import RunInputs, read_inputs
from system.config.load import dump_yaml, split_resume, to_dict
from system.config.machine import run_directory
from system.config.schema import CheckpointConfig, Config
from system.metrics import MetricTable
from system.records import Prompt
from system.reports.display import Display
from system.reports.recorder import Recorder
from system.reports.reporter import Reporter
from system.reports.summary import write_summary
from system.reports.tracker import Tracker
from system.runtime.checkpoint import CheckpointStore, RunState
from system.runtime.control_loop import control_of_run
from system.runtime.controller import Controller, Outcome, Parts
from system.runtime.evaluator import Evaluator
from system.runtime.flight_recorder import FlightRecorder
from system.runtime.group_buffer import GroupBuffer
from system.runtime.learner_group import LearnerGroup
from system.runtime.ledger import LedgerTotals
from system.runtime.placement import Placement
from system.runtime.pools import Pools, make_pools
from system.runtime.run_status import Progress
from system.runtime.session import run_on_ray
from system.runtime.watchdog import Watchdog, make_watchdog
from system.runtime.weight_sync import WeightSync

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

    try:
        stopped_by = run_on_ray(
            config,
            lambda: _train(
                config, folder=folder, inputs=inputs, session_start=session_start, elapsed_seconds=elapsed_seconds
            ),
        )
    finally:
        folder.checkpoints.discard_partial()
    if stopped_by is None:
        return 0
    print(_how_to_continue(folder, stopped_by=stopped_by), file=sys.stderr)
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
    wanted = run_directory(config.run) / config.run.name
    path, number = wanted, 1
    while path.exists():
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return RunFolder(path=path, checkpoints=_store(path, config=config.checkpoint), resumed_from=None, resumed=None)


def _store(run_folder: Path, *, config: CheckpointConfig) -> CheckpointStore:
    return CheckpointStore(run_folder, keep=config.keep, keep_best=config.keep_best, best_metric=config.best_metric)


async def _train(
    config: Config,
    *,
    folder: RunFolder,
    inputs: RunInputs,
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
            watchdog = make_watchdog(config, run_folder=folder.path, alert=reporter.alert, advice=_advice(folder))
            async with watchdog.guard():
                outcome, ledger = await _train_with_actors(
                    config,
                    folder=folder,
                    inputs=inputs,
                    reporter=reporter,
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
    watchdog: Watchdog,
    elapsed_seconds: Callable[[], float],
) -> tuple[Outcome, LedgerTotals]:
    """Create all actors, run the controller, and take the actors down again however it ends."""
    placement = Placement(config=config)
    learner_group = LearnerGroup(
        actors=placement.create_learner_actors(),
        config=config.learner,
        weight_sync=config.weight_sync,
        scorer=config.scorer,
        canary_token_ids=inputs.canary_token_ids,
    )
    pools = make_pools(config, placement=placement)
    control = control_of_run(folder.path, config=config, pools=pools)
    try:
        reporter.enter_phase("start")
        async with asyncio.TaskGroup() as starts:
            starts.create_task(_start_learner(learner_group, folder=folder))
            starts.create_task(pools.start())
        recorder = FlightRecorder(folder.path, config=config, alert=reporter.alert)
        parts = _connect(
            config, folder, inputs=inputs, learner_group=learner_group, pools=pools, flight_recorder=recorder
        )
        controller = Controller(
            config=config,
            parts=parts,
            reporter=reporter,
            resumed=folder.resumed,
            elapsed_seconds=elapsed_seconds,
        )
        watchdog.watch(controller.stages.observe)
        control.progress = Progress(
            outcome=controller.outcome, buffer=parts.buffer, admissions=parts.weight_sync.admissions
        )
        outcome = await controller.run()
        reporter.draw_newest_heat_maps()
        parts.buffer.drop_all(reason="run_ended")
        return outcome, parts.buffer.totals()
    finally:
        reporter.enter_phase("shutdown")
        await control.close()
        await asyncio.gather(
            learner_group.shutdown(seconds=_SHUTDOWN_SECONDS), pools.shutdown(seconds=_SHUTDOWN_SECONDS)
        )


async def _start_learner(learner_group: LearnerGroup, *, folder: RunFolder) -> None:
    await learner_group.check_folder_is_shared(folder.path)
    await learner_group.start()
    if folder.resumed is not None and folder.resumed_from is not None:
        await learner_group.load_checkpoint(folder.resumed_from, policy_version=folder.resumed.policy_version)


def _connect(
    config: Config,
    folder: RunFolder,
    *,
    inputs: RunInputs,
    learner_group: LearnerGroup,
    pools: Pools,
    flight_recorder: FlightRecorder,
) -> Parts:
    """Everything of the driver process that stands between the actors."""
    resumed = folder.resumed
    return Parts(
        algorithm=inputs.algorithm,
        learner_group=learner_group,
        pools=pools,
        scoring=pools.group_scoring(config),
        weight_sync=WeightSync(
            learner_group=learner_group,
            rollouts=pools.rollouts,
            scoring=pools.scoring,
            config=config.weight_sync,
        ),
        buffer=GroupBuffer(
            prompts_per_step=config.batch.prompts_per_step,
            max_staleness=config.controller.max_staleness,
            published_version=resumed.policy_version if resumed else 0,
            num_updates=config.run.num_updates,
            restored=resumed.ledger if resumed else None,
            outstanding=resumed.outstanding if resumed else None,
        ),
        prompt_source=inputs.training_prompts,
        evaluator=make_evaluator(config, prompts=inputs.held_out_prompts, pools=pools),
        checkpoints=folder.checkpoints,
        flight_recorder=flight_recorder,
    )


def make_evaluator(config: Config, *, prompts: Sequence[Prompt], pools: Pools) -> Evaluator:
    """The evaluator over prompts of the held-out split."""
    return Evaluator(
        generator=pools,
        verify=pools.group_scoring(config).verify,
        prompts=prompts,
        config=config.evaluation,
        max_tokens=config.rollout.max_completion_tokens,
        seed=config.run.seed,
    )


def _summarise(folder: RunFolder, *, outcome: Outcome, ledger: LedgerTotals, seconds: float) -> None:
    best = folder.checkpoints.best()
    print(write_summary(folder.path, outcome=outcome, ledger=ledger, seconds=seconds, best_checkpoint=best))


def _how_to_continue(folder: RunFolder, *, stopped_by: signal.Signals) -> str:
    if not folder.checkpoints.complete():
        return f"Stopped by {stopped_by.name} before the first checkpoint; {folder.path} holds what was logged."
    return f"Stopped by {stopped_by.name}. {_advice(folder)()}"


def _advice(folder: RunFolder) -> Callable[[], str]:
    """How to go on from where the run is at the moment of the call."""

    def advise() -> str:
        if not folder.checkpoints.complete():
            return f"There is no checkpoint yet; {folder.path} holds what was logged."
        latest = folder.checkpoints.latest().name
        return f"Continue from {latest}: credence train --resume {folder.path}"

    return advise
