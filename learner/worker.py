"""One learner rank as the rest of the system sees it: a Learner that also publishes its weights and broadcasts them.

A plain class; system/runtime/placement.py makes it a Ray actor. Methods run one at a time, in the order of the calls,
but for `written_checkpoint` and `is_alive`, which are answered beside them.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from learner.background_writer import BackgroundWriter, Write
from learner.export import export_hf, snapshot_weights
from learner.learner import Learner
from learner.publisher import SnapshotPublisher
from learner.scoring_snapshots import AveragedSnapshot, LaggedSnapshots, NewestSnapshot, ScoringSnapshots
from system.config.schema import ScorerConfig, WeightSyncConfig
from system.data.file_stamps import FileStamp
from system.errors import WeightSyncError
from system.records import OptimizerStep, StepResult
from system.weights import store
from system.weights.broadcast import WeightGroup, send_buckets, transfer_device
from system.weights.manifest import WeightGroupSpec, WeightsManifest


class LearnerWorker(Learner):
    """Every method but `rendezvous`, `open_weight_group` and `broadcast` (rank 0 alone) is called on all ranks."""

    _group: WeightGroup | None = None
    _newest: tuple[int, WeightsManifest | None] | None = None  # version that was published last; manifest on rank 0

    @functools.cached_property
    def _writer(self) -> BackgroundWriter:
        return BackgroundWriter(who=f"learner rank {self._rank}")

    def rendezvous(self) -> tuple[str, int]:
        """This node's address and a free port; where the ranks meet, or a weight group."""
        host = store.node_address()
        return host, free_port(host)

    def start_publishing(
        self, *, canary_token_ids: Sequence[int], weight_sync: WeightSyncConfig, scorer: ScorerConfig
    ) -> int:
        """After `start`; returns the bytes of one snapshot."""
        self._canary_token_ids = list(canary_token_ids)
        self._timeout_seconds = weight_sync.timeout_seconds
        self._scoring = self._scoring_snapshots(scorer)
        self._publisher = SnapshotPublisher(
            self._engine,
            rank=self._rank,
            architecture=self._engine.architecture,
            bucket_bytes=weight_sync.bucket_mib * 2**20,
            put=store.put,
            scoring=self._scoring,
        )
        return self._publisher.snapshot_bytes

    def train_and_publish(self, steps: Sequence[OptimizerStep]) -> tuple[StepResult, WeightsManifest | None]:
        """One batch and the snapshot of the weights, with nothing between the two; the manifest on rank 0."""
        result = self.train_step(steps)
        return result, self.publish()

    def publish(self) -> WeightsManifest | None:
        """The manifest of the present weights, on rank 0. The one before stays when the version has not moved."""
        if self._newest is None or self._newest[0] != self.policy_version:
            manifest = self._publisher.publish(
                policy_version=self.policy_version,
                canary_token_ids=self._canary_token_ids,
                canary_logprobs=self.canary_logprobs(self._canary_token_ids),
            )
            self._newest = (self.policy_version, manifest)
        return self._newest[1]

    def open_weight_group(self, spec: WeightGroupSpec) -> None:
        """Meet the receivers of `spec` as rank 0 and leave the former group.

        Raises DeadlineError naming the ranks that did not join, WeightSyncError when the port is taken.
        """
        self._leave_weight_group()
        self._group = WeightGroup(spec, rank=0)

    def broadcast(self, manifest: WeightsManifest) -> None:
        """Send a snapshot, read from the store, to the weight group. Raises DeadlineError, WeightSyncError."""
        if self._group is None:
            raise WeightSyncError("the weight sender has no open weight group")
        device = transfer_device(self._group.spec, device=torch.device(self._config.device))
        buffers = (torch.from_numpy(buffer) for buffer in self._fetch(manifest.references))
        try:
            send_buckets(self._group, buffers, manifest=manifest, device=device)
        except BaseException:
            self._leave_weight_group()  # its peers notice at once
            raise

    def is_alive(self) -> bool:
        """Answered beside the other methods, in a thread of its own: a rank that does not is gone or stands still."""
        return True

    def sees_file(self, path: str, text: str) -> bool:
        """Whether this node finds `text` in the file."""
        try:
            return Path(path).read_text() == text
        except OSError:
            return False

    def start_checkpoint(self, *, learner: str, policy: str, scorer: str) -> None:
        """Copy what a checkpoint needs of the present version and have it written into these folders, in a thread.

        Rank 0 also writes the policy in Hugging Face format and what scorers need besides the newest weights. Waits
        for the checkpoint before.
        """
        self._writer.settle()
        writes: list[Write] = [self.capture_checkpoint(learner)]
        if self._rank == 0:
            writes += [self._export(policy), self._scoring.capture(scorer)]
        self._writer.start(writes)

    def written_checkpoint(self) -> dict[str, FileStamp]:
        """Waits until the newest checkpoint is on disk; the files of this rank, by path. Raises CheckpointError."""
        return self._writer.wait()

    def _export(self, directory: str) -> Write:
        """The published snapshot is in the store already, and nothing changes it there."""
        assert self._newest is not None
        version, manifest = self._newest
        assert manifest is not None
        assert version == self.policy_version, "the weights have to be published before they are exported"
        buffers, source = self._buffers, self._description_folder

        def write() -> Sequence[Path]:
            weights = snapshot_weights(manifest, fetch=self._fetch)
            return export_hf(directory, weights=weights | buffers, source=source)

        return write

    def load_scoring_snapshots(self, directory: str) -> None:
        """Raises CheckpointError when the checkpoint does not continue scorer.mode."""
        if self._rank == 0:
            self._scoring.load(directory)

    def shutdown(self) -> None:
        self._leave_weight_group()
        super().shutdown()

    def _scoring_snapshots(self, scorer: ScorerConfig) -> ScoringSnapshots:
        if scorer.mode == "lagged":
            return LaggedSnapshots(lag_versions=scorer.lag_versions, put=store.put, fetch=self._fetch)
        if scorer.mode == "ema":
            return AveragedSnapshot(decay=scorer.ema_decay, put=store.put)
        return NewestSnapshot()

    def _fetch(self, references: Sequence[object]) -> store.Buckets:
        return store.fetch(references, seconds=self._timeout_seconds)

    def _leave_weight_group(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


def free_port(host: str) -> int:
    """A TCP port that nobody listens on at `host`."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
