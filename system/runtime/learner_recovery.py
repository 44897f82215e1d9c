"""A learner rank is lost: the run goes back to its last checkpoint with new ranks, and all other workers stay up.

    run the controller ──a rank dies or stands still──> end all ranks, drop the calls in flight
        ▲                                                    │
        └─ start new ranks, load, publish <─ the newest whole checkpoint, or the initial weights

Weights and run state go back together, as `credence train --resume` does it: the prompts, the groups in flight and the
ledger are those of the checkpoint, so that in the history that survives nothing is trained twice and nothing is lost.
Rollout workers and replicas load the older version in the first weight sync. Buffer, controller and weight sync are
made anew around the same pools, because each of them may rely on versions that only grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from system.data.prompts import PromptCursor
from system.errors import LearnerDiedError, SnapshotLostError
from system.reports.reporter import Reporter
from system.runtime.checkpoint import CheckpointStore, RunState
from system.runtime.controller import Controller
from system.runtime.learner_group import LearnerGroup
from system.runtime.learner_restarts import LearnerRestarts
from system.runtime.ledger import LedgerState
from system.runtime.pools import Pools


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run goes on: a checkpoint with its state, or (None, None) the very beginning."""

    checkpoint: Path | None = None
    state: RunState | None = None


class Learners(Protocol):
    """Makes learner groups, one after another."""

    def create(self) -> LearnerGroup: ...

    async def start(self, learner_group: LearnerGroup, position: Position) -> None:
        """Raises LearnerDiedError, ConfigError, CheckpointError."""


class LearnerRecovery:
    """Runs one controller after another until one comes to its end."""

    def __init__(
        self,
        *,
        learners: Learners,
        pools: Pools,
        checkpoints: CheckpointStore,
        reporter: Reporter,
        restarts: LearnerRestarts,
        make_controller: Callable[[LearnerGroup, RunState | None], Controller],
        learner_group: LearnerGroup,
    ) -> None:
        """`learner_group` is the first one; it is started already."""
        self._learners = learners
        self._pools = pools
        self._checkpoints = checkpoints
        self._reporter = reporter
        self._restarts = restarts
        self._make_controller = make_controller
        self.learner_group = learner_group  # the present one

    async def run(self, position: Position) -> Controller:
        """The controller that ended the run well. Raises LearnerDiedError when learner.max_restarts are used up."""
        is_started = True
        while True:
            controller: Controller | None = None
            try:
                if not is_started:
                    await self._learners.start(self.learner_group, position)
                controller = self._make_controller(self.learner_group, position.state)
                await self._run(controller)
                return controller
            except (BaseExceptionGroup, LearnerDiedError, SnapshotLostError) as error:
                loss = learner_loss(error)
                task = asyncio.current_task()
                if loss is None or (task is not None and task.cancelling()):
                    raise
                position = await self._go_back(position, loss=loss, controller=controller)
                is_started = False

    async def _run(self, controller: Controller) -> None:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self.learner_group.watch())
            await controller.run()
            watching.cancel()

    async def _go_back(self, former: Position, *, loss: Exception, controller: Controller | None) -> Position:
        """Take the ranks down, create new ones, and return where the run goes on."""
        self._restarts.note_loss(loss)
        self.learner_group.kill()
        self._pools.abandon_calls()
        await asyncio.to_thread(self._reporter.enter_phase, "recover")
        await asyncio.to_thread(self._checkpoints.discard_partial)
        checkpoint, state = None, None
        if self._checkpoints.complete():
            newest = await asyncio.to_thread(self._checkpoints.newest_whole)
            checkpoint, state = newest.path, newest.state
            await asyncio.to_thread(self._checkpoints.set_newer_aside, checkpoint, suffix=".corrupt")
        version = state.policy_version if state is not None else 0
        num_updates = num_groups = 0
        if controller is not None:
            num_updates = controller.outcome.policy_version - version
            num_groups = controller.buffer.totals().trained - (state.ledger["trained"] if state is not None else 0)
        state = undone(
            state, former=controller.buffer.totals().undone if controller else _undone(former), more=num_groups
        )
        await asyncio.to_thread(self._reporter.go_back, version if checkpoint is not None else None)
        text = (
            f"{loss}; all ranks are started again from "
            f"{checkpoint.name if checkpoint is not None else 'the initial weights'} (restart "
            f"{self._restarts.num_restarts} of at most {self._restarts.max_restarts}); {num_updates} updates with "
            f"{num_groups} groups are undone and made again"
        )
        await asyncio.to_thread(self._reporter.alert, "Learner lost", text=text)
        self.learner_group = self._learners.create()
        return Position(checkpoint=checkpoint, state=state)


def learner_loss(error: BaseException) -> Exception | None:
    """The loss of the learner that `error` tells of; None when anything else went wrong as well."""
    leaves = list(_leaves(error))
    losses = [leaf for leaf in leaves if isinstance(leaf, LearnerDiedError | SnapshotLostError)]
    if len(losses) < len(leaves):
        return None
    died = [loss for loss in losses if isinstance(loss, LearnerDiedError)]
    return (died or losses)[0]


def undone(state: RunState | None, *, former: int, more: int) -> RunState:
    """The state of a checkpoint (None: of the beginning), whose ledger also knows what was undone until now."""
    if state is None:
        ledger = LedgerState(
            leased=0, generated=0, scored=0, trained=0, regenerated=0, dropped={}, in_flight=[], last_group_id=-1
        )
        state = RunState(
            policy_version=0,
            cursor=PromptCursor(),
            ledger=ledger,
            outstanding={},
            completion_tokens=0,
            seconds=0.0,
            canary_max_abs_diff=0.0,
            guards=None,
        )
    return replace(state, ledger=LedgerState(**state.ledger | {"undone": former + more}))


def _undone(position: Position) -> int:
    return position.state.ledger.get("undone", 0) if position.state is not None else 0


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
