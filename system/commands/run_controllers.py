"""Makes the controller of a run, with everything of the driver process that stands between the actors.

One for the start, and one for each time that the learner group was lost: what relies on versions that only grow is
made anew, around the same pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from system.commands.run_inputs import RunInputs
from system.config.schema import Config
from system.records import Prompt
from system.reports.reporter import Reporter
from system.runtime.checkpoint import CheckpointStore, RunState
from system.runtime.control_loop import ControlLoop
from system.runtime.controller import Controller
from system.runtime.evaluator import Evaluator
from system.runtime.flight_recorder import FlightRecorder
from system.runtime.group_buffer import GroupBuffer
from system.runtime.learner_group import LearnerGroup
from system.runtime.learner_restarts import LearnerRestarts
from system.runtime.parts import Parts
from system.runtime.pools import Pools
from system.runtime.preemption import Preemption
from system.runtime.run_status import Progress
from system.runtime.watchdog import Watchdog
from system.runtime.weight_sync import WeightSync


@dataclass(frozen=True, slots=True, kw_only=True)
class RunControllers:
    """What all controllers of a run share."""

    config: Config
    inputs: RunInputs
    pools: Pools
    checkpoints: CheckpointStore
    reporter: Reporter
    preemption: Preemption
    restarts: LearnerRestarts
    flight_recorder: FlightRecorder
    watchdog: Watchdog
    control: ControlLoop
    elapsed_seconds: Callable[[], float]

    def make(self, learner_group: LearnerGroup, state: RunState | None) -> Controller:
        """A controller that goes on at `state` (None: at the beginning), and is watched and shown from now on."""
        parts = self._connect(learner_group, state)
        controller = Controller(
            config=self.config,
            parts=parts,
            reporter=self.reporter,
            resumed=state,
            elapsed_seconds=self.elapsed_seconds,
        )
        self.watchdog.watch(controller.stages.observe)
        self.control.progress = Progress(
            outcome=controller.outcome, buffer=parts.buffer, admissions=parts.weight_sync.admissions
        )
        return controller

    def _connect(self, learner_group: LearnerGroup, state: RunState | None) -> Parts:
        config, pools = self.config, self.pools
        if state is not None:
            self.inputs.training_prompts.go_to(state.cursor)
        return Parts(
            algorithm=self.inputs.algorithm,
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
                published_version=state.policy_version if state else 0,
                num_updates=config.run.num_updates,
                restored=state.ledger if state else None,
                outstanding=state.outstanding if state else None,
            ),
            prompt_source=self.inputs.training_prompts,
            evaluator=make_evaluator(config, prompts=self.inputs.held_out_prompts, pools=pools),
            checkpoints=self.checkpoints,
            preemption=self.preemption,
            restarts=self.restarts,
            flight_recorder=self.flight_recorder,
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
