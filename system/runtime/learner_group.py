"""The learner ranks as one thing: every collective call goes to all ranks and is waited for together.

The controller trains with it; weight_sync.py gathers and sends through it. A rank that dies or does
not answer ends the run with an error that names it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError

from system.config.schema import AlgorithmConfig, LearnerConfig, ModelConfig
from system.data.file_stamps import FileStamp, write_synced
from system.errors import ConfigError, LearnerDiedError
from system.records import FloatArray, StepResult, TrainingBatch, WeightGroupSpec, WeightsManifest
from system.runtime.checkpoint import learner_directory, policy_directory
from system.runtime.deadlines import within
from system.runtime.placement import ActorHandle, shut_down_actors


class LearnerGroup:
    """R learner actors; rank r is `actors[r]`."""

    def __init__(self, *, actors: Sequence[ActorHandle], config: LearnerConfig, transfer_seconds: float) -> None:
        self._actors = list(actors)
        self._config = config
        self._transfer_seconds = transfer_seconds

    async def start(
        self, *, model: ModelConfig, algorithm: AlgorithmConfig, num_updates: int, temperature: float
    ) -> None:
        """Build one DeepSpeed engine on each rank. Raises DeadlineError, LearnerDiedError."""
        seconds = self._config.start_timeout_seconds
        host, port = await self._one(0, "rendezvous", seconds=seconds)
        await self._all(
            "start",
            seconds=seconds,
            host=host,
            port=port,
            model=model,
            algorithm=algorithm,
            num_updates=num_updates,
            temperature=temperature,
        )

    async def train_step(self, batch: TrainingBatch) -> StepResult:
        """One optimizer step on all ranks; the result is rank 0's, whose metrics are global."""
        calls = [
            actor.train_step.remote(batch.micro_batches[rank], batch.num_loss_tokens, batch.num_sequences)
            for rank, actor in enumerate(self._actors)
        ]
        return (await self._gather(calls, what="train_step", seconds=self._config.step_timeout_seconds))[0]

    async def gather_weights(self) -> WeightsManifest:
        return (await self._all("gather_weights", seconds=self._transfer_seconds))[0]

    async def open_weight_group(self, spec: WeightGroupSpec) -> None:
        await self._one(0, "open_weight_group", seconds=self._transfer_seconds, spec=spec)

    async def send_weights(self, manifest: WeightsManifest) -> None:
        await self._one(0, "send_weights", seconds=self._transfer_seconds, manifest=manifest)

    async def rendezvous(self) -> tuple[str, int]:
        """Rank 0's address and a free port on its node."""
        return await self._one(0, "rendezvous", seconds=self._transfer_seconds)

    async def canary_logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        """float32[len(token_ids) - 1], nats."""
        return (await self._all("canary_logprobs", seconds=self._transfer_seconds, token_ids=list(token_ids)))[0]

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

    async def save_checkpoint(self, directory: Path) -> dict[str, FileStamp]:
        """Every rank's part of the learner, and the policy in Hugging Face format; their files by path."""
        files: dict[str, FileStamp] = {}
        for method, part in (("save_checkpoint", learner_directory), ("export_hf", policy_directory)):
            seconds = self._config.step_timeout_seconds
            for written in await self._all(method, seconds=seconds, directory=str(part(directory))):
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
        async with asyncio.TaskGroup() as tasks:
            answers = [
                tasks.create_task(self._answer(rank, call, what=what, seconds=seconds))
                for rank, call in enumerate(calls)
            ]
        return [answer.result() for answer in answers]

    async def _answer(self, rank: int, call: Any, *, what: str, seconds: float) -> Any:
        who = f"learner rank {rank}"
        try:
            return await within(call, who=who, what=what, seconds=seconds)
        except RayActorError as error:
            raise LearnerDiedError(
                f"{who} died during '{what}' ({type(error).__name__}); the run ends. "
                "Continue from the last checkpoint with 'credence train --resume RUN_DIR'."
            ) from error
