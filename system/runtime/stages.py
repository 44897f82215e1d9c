"""The stages of the controller as the watchdog sees them: when each has work, what its progress is, whom it waits for.

| stage       | has work while                                  | progress                                         |
|-------------|-------------------------------------------------|--------------------------------------------------|
| lease       | a slot is free (and leasing has begun)          | groups leased                                    |
| generate    | groups are being generated                      | groups generated, again, dropped; answers        |
| score       | groups are being scored                         | groups scored, dropped; answers                  |
| prepare     | a batch was taken and is not prepared           | batches prepared; answers                        |
| reports     | reports wait for their thread                   | reports done                                     |
| wait for    | the train loop waits for a batch: nothing at    | any of the above                                 |
| batch       | all goes on (a deadlock)                        |                                                  |
| train, ...  | the train loop is in that phase                 | answers of those that it asks                    |

A stage is bounded while somebody it waits for has a deadline of its own to come, which then acts first.
"""

from __future__ import annotations

from dataclasses import dataclass

from system.runtime.batch_preparation import BatchPreparation
from system.runtime.group_buffer import GroupBuffer
from system.runtime.open_waits import ACTORS, OpenWaits
from system.runtime.ordered_thread import OrderedThread
from system.runtime.stall_clock import StageObservation

EVENT_LOOP = "event loop"
_ALL = frozenset(ACTORS)
_SCORERS = frozenset({"reward worker", "scoring replica"})
_LEARNER = frozenset({"learner rank"})
# whom each stage waits for; a worker that joins or loads may itself wait for the learner
WAITS_FOR = {
    EVENT_LOOP: frozenset[str](),
    "lease": frozenset[str](),
    "generate": frozenset({"rollout worker"}) | _LEARNER,
    "score": _SCORERS | _LEARNER,
    "prepare": _SCORERS | _LEARNER,
    "reports": frozenset[str](),
    "train": _LEARNER,
    "checkpoint": _LEARNER,
}
_PHASE_OF_WAITING = "rollout"


def waits_for(stage: str) -> frozenset[str]:
    """The kinds of workers that a stage waits for; all of them for one that is not named."""
    return WAITS_FOR.get(stage, _ALL)


@dataclass(slots=True, kw_only=True, eq=False)
class ControllerStages:
    """Looks at the controller's parts; in their event loop."""

    buffer: GroupBuffer
    preparation: BatchPreparation
    reports: OrderedThread
    phase: str = ""
    num_phases: int = 0
    is_running: bool = True
    _leased_before: int = -1

    def enter_phase(self, name: str) -> None:
        """The train loop does something else from now on."""
        self.phase = name
        self.num_phases += 1

    def end(self) -> None:
        """The controller has ended: nothing of it has work any more."""
        self.is_running = False

    def observe(self, waits: OpenWaits) -> list[StageObservation]:
        """All stages at this moment."""
        if not self.is_running:
            return []
        buffer, preparation, reports = self.buffer, self.preparation, self.reports
        totals = buffer.totals()
        if self._leased_before < 0:
            self._leased_before = totals.leased
        ended = totals.generated + totals.regenerated + totals.dropped
        is_leasing = totals.leased > self._leased_before
        stages = {
            "lease": (is_leasing and buffer.has_free_slot, totals.leased),
            "generate": (buffer.num_in_state("generating") > 0, ended),
            "score": (buffer.num_in_state("scoring") > 0, totals.scored + totals.dropped),
            "prepare": (preparation.is_preparing, preparation.num_prepared),
            "reports": (reports.num_waiting > 0, reports.num_done),
        }
        everything = sum(progress for _, progress in stages.values()) + totals.trained + totals.scored
        if self.phase == _PHASE_OF_WAITING:
            stages["wait for a batch"] = (True, everything + self.num_phases)
        elif self.phase:
            stages[self.phase] = (True, self.num_phases)
        return [
            StageObservation(
                stage=stage,
                is_busy=is_busy,
                progress=progress + waits.num_ended(waits_for(stage)),
                is_bounded=waits.are_in_time(waits_for(stage)),
            )
            for stage, (is_busy, progress) in stages.items()
        ]
