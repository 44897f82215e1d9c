"""Ray wrapper of one learner rank. Methods run one at a time, in the order in which they were called."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from system.config.machine import model_folder
from system.config.schema import AlgorithmConfig, LearnerConfig, ModelConfig
from system.data.file_stamps import FileStamp
from system.records import FloatArray, PackedMicroBatch, StepResult, WeightGroupSpec, WeightsManifest

if TYPE_CHECKING:
    import torch


class LearnerActor:
    """One rank of the DeepSpeed group; rank 0 also sends the weights."""

    def __init__(self, *, rank: int, num_ranks: int, learner: LearnerConfig) -> None:
        # torch reads these once, at import
        os.environ["OMP_NUM_THREADS"] = str(learner.threads_per_rank)
        self._rank = rank
        self._num_ranks = num_ranks
        self._config = learner

    def rendezvous(self) -> tuple[str, int]:
        """This node's address and a free port; rank 0's is where the group meets."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            return host, int(probe.getsockname()[1])

    def start(
        self,
        *,
        host: str,
        port: int,
        model: ModelConfig,
        algorithm: AlgorithmConfig,
        num_updates: int,
        temperature: float,
    ) -> None:
        import torch

        from learner.learner import Learner
        from learner.weight_sender import WeightSender

        self._learner = Learner(
            rank=self._rank,
            num_ranks=self._num_ranks,
            config=self._config,
            algorithm=algorithm,
            model_path=str(model_folder(model.path) or model.path),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            num_updates=num_updates,
            temperature=temperature,
        )
        self._learner.start(host=host, port=port)
        self._sender = WeightSender(device=torch.device(self._config.device))
        self._gathered: Mapping[str, torch.Tensor] = {}

    def train_step(
        self, micro_batches: Sequence[PackedMicroBatch], num_loss_tokens: int, num_sequences: int
    ) -> StepResult:
        return self._learner.train_step(micro_batches, num_loss_tokens=num_loss_tokens, num_sequences=num_sequences)

    def gather_weights(self) -> WeightsManifest | None:
        """Collective over all ranks; only rank 0 returns a manifest."""
        self._gathered = self._learner.gather_full_weights()
        if self._rank != 0:
            return None
        return self._sender.describe(self._gathered, policy_version=self._learner.policy_version)

    def open_weight_group(self, spec: WeightGroupSpec) -> None:
        self._sender.open(spec)

    def send_weights(self, manifest: WeightsManifest) -> None:
        self._sender.send(self._gathered, manifest)

    def canary_logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        """Collective over all ranks (ZeRO-3 shards the parameters)."""
        return self._learner.canary_logprobs(token_ids)

    def sees_file(self, path: str, text: str) -> bool:
        """Whether this node finds `text` in the file."""
        try:
            return Path(path).read_text() == text
        except OSError:
            return False

    def save_checkpoint(self, directory: str) -> dict[str, FileStamp]:
        """The files that this rank wrote, by path."""
        return self._learner.save_checkpoint(directory)

    def load_checkpoint(self, directory: str, policy_version: int) -> None:
        self._learner.load_checkpoint(directory, policy_version=policy_version)

    def export_hf(self, directory: str) -> dict[str, FileStamp]:
        """Collective over all ranks; rank 0 writes, and returns its files by path."""
        return self._learner.export_hf(directory)

    def shutdown(self) -> None:
        self._sender.close()
        self._learner.shutdown()
