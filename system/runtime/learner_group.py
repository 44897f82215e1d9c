"""The learner ranks as one thing: every collective call goes to all ranks and is waited for together.

The controller trains with it and gets a snapshot of the weights for each new policy version; weight_sync.py sends
through it. A rank that dies, or that does not answer in time, raises LearnerDiedError; learner_recovery.py then starts
another group. `watch` notices a death within about a second and a rank that stands still within
learner.heartbeat_timeout_seconds, in a step and between two.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from system.config.schema import LearnerConfig, ScorerConfig, WeightSyncConfig
from system.data.file_stamps import FileStamp, write_synced
from system.errors import ConfigError, CredenceError, DeadlineError, LearnerDiedError
from system.records import OptimizerStep, StepResult, TrainingBatch
from system.runtime.checkpoint import learner_directory, policy_directory, scorer_directory
from system.runtime.deadlines import LateOnly, wait_observer, within
from system.runtime.placement import CHECKPOINT_GROUP, LIVENESS_GROUP, ActorHandle, shut_down_actors
from system.weights.broadcast import call_off
from system.weights.manifest import WeightGroupSpec, WeightsManifest
from system.weights.store import check_capacity

_PING_SECONDS = 1.0


class LearnerGroup:
    """R learner actors; rank r is `actors[r]`."""

    def __init__(
        self,
        *,
        actors: Sequence[ActorHandle],
        config: LearnerConfig,
        weight_sync: WeightSyncConfig,
        scorer: ScorerConfig,
        canary_token_ids: Sequence[int],
    ) -> None:
        self._actors = list(actors)
        self._config = config
        self._weight_sync = weight_sync
        self._scorer = scorer
        self._canary_token_ids = list(canary_token_ids)

    async def start(self) -> None:
        """Build one DeepSpeed engine on each rank.

        Raises DeadlineError, LearnerDiedError, ConfigError when the object store cannot hold the weights.
        """
        seconds = self._config.start_timeout_seconds
        host, port = await self._one(0, "rendezvous", seconds=seconds)
        await self._all("start", seconds=seconds, host=host, port=port)
        num_bytes = await self._all(
            "start_publishing",
            seconds=seconds,
            canary_token_ids=self._canary_token_ids,
            weight_sync=self._weight_sync,
            scorer=self._scorer,
        )
        check_capacity(num_bytes[0], num_snapshots=num_snapshots(self._scorer), nodes=ray.nodes())

    async def train_and_publish(self, batch: TrainingBatch) -> tuple[StepResult, WeightsManifest]:
        """The optimizer steps of one batch on all ranks and the snapshot of the weights; metrics are global."""
        calls = [
            actor.train_and_publish.remote(steps)
            for actor, steps in zip(self._actors, batch.steps_by_rank, strict=True)
        ]
        seconds = self._config.step_timeout_seconds + self._weight_sync.timeout_seconds
        return (await self._gather(calls, what="train_and_publish", seconds=seconds))[0]

    async def accumulate(self, steps: Sequence[OptimizerStep]) -> None:
        """Add one portion, by rank, to the gradient; `train_and_publish` gets the last portion of the batch."""
        calls = [actor.accumulate.remote(step) for actor, step in zip(self._actors, steps, strict=True)]
        await self._gather(calls, what="accumulate", seconds=self._config.step_timeout_seconds)

    async def publish(self) -> WeightsManifest:
        """The snapshot of the weights as they are: at the start, and after a resume."""
        return (await self._all("publish", seconds=self._weight_sync.timeout_seconds))[0]

    async def open_weight_group(self, spec: WeightGroupSpec) -> None:
        await self._one(0, "open_weight_group", seconds=self._weight_sync.timeout_seconds, spec=spec)

    async def broadcast(self, manifest: WeightsManifest) -> None:
        """Send a snapshot to the receivers of the weight group. Raises what the sender raises."""
        await self._one(0, "broadcast", seconds=2 * self._weight_sync.timeout_seconds, manifest=manifest)

    async def call_off(self, spec: WeightGroupSpec, *, reason: str) -> None:
        """Let rank 0 and the receivers stop waiting for one of them that is lost. Never raises."""
        await asyncio.to_thread(call_off, spec, reason=reason)

    async def rendezvous(self) -> tuple[str, int]:
        """Rank 0's address and a free port on its node."""
        return await self._one(0, "rendezvous", seconds=self._weight_sync.timeout_seconds)

    async def require_alive(self) -> None:
        """Raise LearnerDiedError when a rank is gone or stands still; one in the middle of a step answers."""
        await asyncio.gather(*(self._ping(rank) for rank in range(len(self._actors))))

    async def watch(self) -> None:
        """Until cancelled, in a task of its own. Raises LearnerDiedError when a rank is gone or stands still."""
        observer = wait_observer.get()
        if observer is not None:
            wait_observer.set(LateOnly(observer))
        while True:
            await self.require_alive()
            await asyncio.sleep(_PING_SECONDS)

    def kill(self) -> None:
        """End all ranks at once: what is left of a group that lost one waits for it."""
        for actor in self._actors:
            ray.kill(actor)

    async def _ping(self, rank: int) -> None:
        call = self._actors[rank].is_alive.options(concurrency_group=LIVENESS_GROUP).remote()
        await self._answer(rank, call, what="answer a ping", seconds=self._config.heartbeat_timeout_seconds)

    async def check_folder_is_shared(self, folder: Path) -> None:
        """Raise ConfigError unless every rank's node sees what is written into `folder` here."""
        token = secrets.token_hex(16)
        probe = folder / f".shared-{token}"
        write_synced(probe, token)
        try:
            seconds = self._config.start_timeout_seconds
            answers = await self._all("sees_file", seconds=seconds, path=str(probe), text=token)
        finally:
            probe.unlink()
        blind = [str(rank) for rank, sees in enumerate(answers) if not sees]
        if blind:
            raise ConfigError(
                "run.directory",
                given=str(folder),
                expected=f"a folder that all nodes share; learner rank {', '.join(blind)} sees another one there, and "
                "every rank writes its part of a checkpoint",
                fix="a folder on a shared file system, or learner ranks on the node of the controller",
            )

    async def start_checkpoint(self, directory: Path) -> None:
        """Every rank copies its part; all is written into `directory` while training goes on."""
        await self._all(
            "start_checkpoint",
            seconds=self._config.step_timeout_seconds,
            learner=str(learner_directory(directory)),
            policy=str(policy_directory(directory)),
            scorer=str(scorer_directory(directory)),
        )

    async def written_checkpoint(self, *, seconds: float) -> dict[str, FileStamp]:
        """The files of all ranks, by path, once they are on disk; waits beside the ranks' other calls.

        Raises CheckpointError naming the rank that could not write, and what hindered it.
        """
        calls = [
            actor.written_checkpoint.options(concurrency_group=CHECKPOINT_GROUP).remote() for actor in self._actors
        ]
        files: dict[str, FileStamp] = {}
        for written in await self._gather(calls, what="written_checkpoint", seconds=seconds):
            files |= written
        return files

    async def load_checkpoint(self, directory: Path, *, policy_version: int) -> None:
        """Raises CheckpointError when the ranks' parts are of another policy version."""
        await self._all(
            "load_checkpoint",
            seconds=self._config.start_timeout_seconds,
            directory=str(learner_directory(directory)),
            policy_version=policy_version,
        )
        await self._all(
            "load_scoring_snapshots",
            seconds=self._config.start_timeout_seconds,
            directory=str(scorer_directory(directory)),
        )

    async def shutdown(self, *, seconds: float) -> None:
        """Ask for a clean exit, then kill whatever is left. Never raises on a dead rank."""
        await shut_down_actors(self._actors, seconds=seconds)

    async def _one(self, rank: int, method: str, *, seconds: float, **arguments: Any) -> Any:
        call = getattr(self._actors[rank], method).remote(**arguments)
        return await self._answer(rank, call, what=method, seconds=seconds)

    async def _all(self, method: str, *, seconds: float, **arguments: Any) -> list[Any]:
        calls = [getattr(actor, method).remote(**arguments) for actor in self._actors]
        return await self._gather(calls, what=method, seconds=seconds)

    async def _gather(self, calls: Sequence[Any], *, what: str, seconds: float) -> list[Any]:
        answers = [
            asyncio.ensure_future(self._answer(rank, call, what=what, seconds=seconds))
            for rank, call in enumerate(calls)
        ]
        try:
            return list(await asyncio.gather(*answers))
        except (RayError, CredenceError) as error:
            if not isinstance(error, LearnerDiedError):
                # the death of one fails the collective of another, which may be heard of first
                await self.require_alive()
            raise
        finally:
            for answer in answers:
                answer.cancel()

    async def _answer(self, rank: int, call: Any, *, what: str, seconds: float) -> Any:
        who = f"learner rank {rank}"
        try:
            return await within(call, who=who, what=what, seconds=seconds)
        except RayActorError as error:
            raise LearnerDiedError(f"{who} died during '{what}' ({type(error).__name__})") from error
        except DeadlineError as error:
            if error.who != who:  # raised in the actor, about somebody else
                raise
            raise LearnerDiedError(str(error)) from error


def num_snapshots(scorer: ScorerConfig) -> int:
    """How many snapshots a node may hold at once: the newest and the one before, and what only scorers load."""
    return {"lagged": 2 + scorer.lag_versions, "ema": 4}.get(scorer.mode, 2)
