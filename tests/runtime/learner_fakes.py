"""A learner group that holds a version, and counts its steps and what was copied for a checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from system.records import OptimizerStep, StepResult, TrainingBatch


@dataclass(frozen=True)
class FakeManifest:
    policy_version: int
    publish_seconds: float = 0.0


@dataclass
class FakeLearnerGroup:
    """Its version counts the steps; `trained` are the prompts of each step, from the tokens that it was sent."""

    max_staleness: int
    pause: Callable[[], Any]
    version: int = 0
    not_finite: frozenset[int] = frozenset()  # prompts whose gradient is NaN
    trained: list[list[int]] = field(default_factory=list)
    copied: int = -1
    writing: Callable[[], Any] = lambda: asyncio.sleep(0)
    checkpoints: list[int] = field(default_factory=list)  # versions that were copied and written
    accumulated: set[int] = field(default_factory=set)  # prompts of the portions since the last step
    portions: list[tuple[int, list[int]]] = field(default_factory=list)  # version and prompts of each that came early

    async def publish(self) -> FakeManifest:
        return FakeManifest(self.version)

    async def train_and_publish(self, batch: TrainingBatch) -> tuple[StepResult, FakeManifest]:
        prompts = self.accumulated | self._prompts_of([step for rank in batch.steps_by_rank for step in rank])
        self.accumulated = set()
        await self.pause()
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
        await self.pause()

    def _prompts_of(self, steps: Sequence[OptimizerStep]) -> set[int]:
        prompts = set()
        for micro_batch in (each for step in steps for each in step.micro_batches):
            prompts |= {int(token) for token in micro_batch.token_ids[micro_batch.sequence_starts[:-1]]}
            behind = self.version - micro_batch.min_policy_versions
            assert (behind >= 0).all(), "a token of a version that is not published yet"
            assert (behind <= self.max_staleness).all(), f"{behind.max()} versions behind"
        return prompts

    async def start_checkpoint(self, directory: Path) -> None:
        await self.pause()
        self.copied = self.version

    async def written_checkpoint(self, *, seconds: float) -> dict[str, Any]:
        await self.writing()
        self.checkpoints.append(self.copied)
        return {}
