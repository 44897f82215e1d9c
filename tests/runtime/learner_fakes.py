"""A learner group that dies or hangs at any of its waits, its successors, and the checkpoints that they go back to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from system.errors import LearnerDiedError
from system.records import OptimizerStep, StepResult, TrainingBatch
from system.runtime.checkpoint import NewestWhole
from system.runtime.learner_recovery import Position


@dataclass(frozen=True)
class FakeManifest:
    policy_version: int
    publish_seconds: float = 0.0


@dataclass
class FakeLearnerGroup:
    """Its version counts the steps; `trained` are the prompts of each step, from the tokens that it was sent.

    A dead one fails every call within a second, a hung one (SIGSTOP) after its missed pings.
    """

    max_staleness: int
    pause: Callable[[], Any]
    version: int = 0
    not_finite: frozenset[int] = frozenset()  # prompts whose gradient is NaN
    trained: list[list[int]] = field(default_factory=list)
    copied: list[list[int]] = field(default_factory=list)  # what it had trained at the last copy
    writing: Callable[[], Any] = lambda: asyncio.sleep(0)
    checkpoints: list[int] = field(default_factory=list)  # versions that were copied and written, of all groups
    accumulated: set[int] = field(default_factory=set)  # prompts of the portions since the last step
    portions: list[tuple[int, list[int]]] = field(default_factory=list)  # version and prompts of each that came early
    is_dead: bool = False
    is_hung: bool = False
    was_killed: bool = False

    async def work(self) -> None:
        """Takes time. Raises LearnerDiedError when the group is lost meanwhile."""
        await self.pause()
        await self.answer()

    async def answer(self) -> None:
        if self.is_hung and not self.is_dead:
            await asyncio.sleep(1000.0)
        if self.is_dead:
            raise LearnerDiedError("learner rank 1 died")

    async def watch(self) -> None:
        while not self.is_dead:
            if self.is_hung:
                await asyncio.sleep(60.0)
                raise LearnerDiedError("learner rank 1 did not finish 'answer a ping' within 60 s")
            await asyncio.sleep(1.0)
        raise LearnerDiedError("learner rank 1 died between two steps")

    def kill(self) -> None:
        self.is_dead = self.was_killed = True

    async def publish(self) -> FakeManifest:
        await self.answer()
        return FakeManifest(self.version)

    async def train_and_publish(self, batch: TrainingBatch) -> tuple[StepResult, FakeManifest]:
        prompts = self.accumulated | self._prompts_of([step for rank in batch.steps_by_rank for step in rank])
        self.accumulated = set()
        await self.work()
        has_new_weights = prompts.isdisjoint(self.not_finite)
        if has_new_weights:
            self.trained.append(sorted(prompts))
            self.version += 1
        result = StepResult(policy_version=self.version, has_new_weights=has_new_weights, metrics=())
        return result, FakeManifest(self.version)

    async def accumulate(self, steps: Sequence[OptimizerStep]) -> None:
        prompts = self._prompts_of(steps)
        self.accumulated |= prompts
        self.portions.append((self.version, sorted(prompts)))
        await self.work()

    def _prompts_of(self, steps: Sequence[OptimizerStep]) -> set[int]:
        prompts = set()
        for micro_batch in (each for step in steps for each in step.micro_batches):
            prompts |= {int(token) for token in micro_batch.token_ids[micro_batch.sequence_starts[:-1]]}
            behind = self.version - micro_batch.min_policy_versions
            assert (behind >= 0).all(), "a token of a version that is not published yet"
            assert (behind <= self.max_staleness).all(), f"{behind.max()} versions behind"
        return prompts

    async def start_checkpoint(self, directory: Path) -> None:
        await self.work()
        self.copied = [*self.trained]

    async def written_checkpoint(self, *, seconds: float) -> dict[str, Any]:
        copied = self.copied
        await self.writing()
        await self.answer()
        self.checkpoints.append(len(copied))
        return {"trained": copied}


class FakeCheckpoints:
    """Keeps the states that were committed, and what the learner had trained by then."""

    def __init__(self) -> None:
        self.states: list[Any] = []
        self.trained: dict[int, list[list[int]]] = {}

    def partial_directory(self, policy_version: int) -> Path:
        return Path("partial")

    def commit(self, directory: Path, state: Any, *, written: Mapping[str, Any]) -> None:
        self.states.append(state)
        self.trained[state.policy_version] = written["trained"]

    def discard_partial(self) -> None: ...

    def complete(self) -> list[Path]:
        return [Path(f"update_{state.policy_version:06d}") for state in self.states]

    def newest_whole(self) -> NewestWhole:
        return NewestWhole(path=self.complete()[-1], state=self.states[-1], faults={})

    def set_newer_aside(self, checkpoint: Path, *, suffix: str) -> None: ...


@dataclass
class FakeLearners:
    """Makes learner groups; `start` takes time and fails when the group dies in it."""

    max_staleness: int
    pause: Callable[[], Any]
    checkpoints: FakeCheckpoints
    created: list[FakeLearnerGroup] = field(default_factory=list)

    def create(self) -> FakeLearnerGroup:
        if self.created:
            former = self.created[-1]
            assert former.was_killed, "the group before is still there"
            self.created.append(
                replace(
                    former, version=0, trained=[], accumulated=set(), is_dead=False, is_hung=False, was_killed=False
                )
            )
        else:
            self.created.append(FakeLearnerGroup(max_staleness=self.max_staleness, pause=self.pause))
        return self.created[-1]

    async def start(self, learner_group: FakeLearnerGroup, position: Position) -> None:
        await learner_group.work()
        if position.checkpoint is not None and position.state is not None:
            learner_group.version = position.state.policy_version
            learner_group.trained = [*self.checkpoints.trained[learner_group.version]]
