"""Makes a snapshot of the learner's weights: gathered bucket by bucket, proved by checksums, put into the store.

    gather (ZeRO-3: this bucket only) ─> checksums ─> host buffer ─> store ─> manifest

Rank 0 writes, the other ranks take part in the gathering. Beyond its share of the parameters rank 0 holds one bucket.
Called by learner/worker.py after each optimizer step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from learner.deepspeed_engine import DeepSpeedEngine
from learner.scoring_snapshots import ScoringSnapshots
from system.errors import NotFiniteError
from system.records import FloatArray
from system.weights.digest import both_sums, slot_view, snapshot_digest
from system.weights.manifest import Bucket, WeightsManifest, plan_buckets
from system.weights.store import Bytes


class SnapshotPublisher:
    """`put` stores a copy of a bucket and returns the reference that keeps it; `scoring` makes what scorers load."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        *,
        rank: int,
        architecture: str,
        bucket_bytes: int,
        put: Callable[[Bytes], object],
        scoring: ScoringSnapshots,
    ) -> None:
        self._engine = engine
        self._rank = rank
        self._architecture = architecture
        self._put = put
        self._scoring = scoring
        self._parameters = engine.parameters()
        self._plan = plan_buckets(
            list(self._parameters),
            [_full_shape(parameter) for parameter in self._parameters.values()],
            [str(parameter.dtype).removeprefix("torch.") for parameter in self._parameters.values()],
            bucket_bytes=bucket_bytes,
        )

        self._largest_bucket = max(bucket.num_bytes for bucket in self._plan)

    @property
    def snapshot_bytes(self) -> int:
        """Of one snapshot in the store."""
        return sum(bucket.num_bytes for bucket in self._plan)

    def publish(
        self, *, policy_version: int, canary_token_ids: Sequence[int], canary_logprobs: FloatArray
    ) -> WeightsManifest | None:
        """Collective over all ranks; only rank 0 returns the manifest.

        Raises NotFiniteError naming the tensor when the weights have made the canary NaN or infinite.
        """
        start = time.perf_counter()
        buckets: list[Bucket] = []
        references: list[object] = []
        # one for all buckets: memory that is new each time costs more than the copy into it
        host = torch.zeros(self._largest_bucket if self._rank == 0 else 0, dtype=torch.uint8)
        self._scoring.start(policy_version)
        is_broken = not np.isfinite(canary_logprobs).all()
        for planned in self._plan:
            with self._engine.gathered([self._parameters[slot.name] for slot in planned.slots]):
                if self._rank != 0:
                    continue
                buffer = host[: planned.num_bytes]
                bucket = self._copied(planned, into=buffer, must_be_finite=is_broken)
            references.append(self._put(buffer.numpy()))
            buckets.append(bucket)
            self._scoring.add(bucket, buffer)
        if is_broken:
            raise NotFiniteError(
                f"policy version {policy_version}: its log-probabilities are NaN or infinite, but no tensor of rank "
                f"{self._rank} is: {self._architecture} overflows in this precision"
            )
        if self._rank != 0:
            return None
        manifest = WeightsManifest(
            policy_version=policy_version,
            architecture=self._architecture,
            buckets=tuple(buckets),
            digest=snapshot_digest(slot for bucket in buckets for slot in bucket.slots),
            references=tuple(references),
            canary_token_ids=tuple(canary_token_ids),
            canary_logprobs=canary_logprobs,
            publish_seconds=time.perf_counter() - start,
        )
        return replace(manifest, scoring=self._scoring.choose(manifest))

    def _copied(self, planned: Bucket, *, into: torch.Tensor, must_be_finite: bool) -> Bucket:
        """Copy the gathered tensors of a bucket into a host buffer; the bucket with their checksums."""
        sums = []
        for slot in planned.slots:
            full = self._parameters[slot.name].detach()
            if must_be_finite and not bool(torch.isfinite(full).all()):
                num_bad = int((~torch.isfinite(full)).sum())
                raise NotFiniteError(
                    f"the weights are broken: {num_bad} of {full.numel()} values of {slot.name} are NaN or infinite"
                )
            sums.append(both_sums(full))  # on the device of the learner, before the copy that it vouches for
            slot_view(into, slot).copy_(full)
        values = torch.stack(sums).tolist()
        slots = tuple(
            replace(slot, checksum=value, content_sum=content)
            for slot, (value, content) in zip(planned.slots, values, strict=True)
        )
        return replace(planned, slots=slots)


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Under ZeRO-3 the parameter itself is empty."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
