"""Snapshots of plain tensors in this process: what learner and object store do, without either."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from system.errors import SnapshotLostError
from system.records import FloatArray
from system.weights.digest import both_sums, slot_view, snapshot_digest
from system.weights.manifest import Bucket, WeightsManifest, plan_buckets
from system.weights.store import Bytes


class MemoryStore:
    """Objects by reference, which are lost when the owner dies."""

    def __init__(self) -> None:
        self.objects: dict[int, Bytes] = {}

    def put(self, bucket: Bytes) -> object:
        reference = len(self.objects)
        self.objects[reference] = bucket.copy()
        self.objects[reference].flags.writeable = False
        return reference

    def fetch(self, references: Sequence[object], *, seconds: float = 0.0) -> Iterator[Bytes]:
        for reference in references:
            assert isinstance(reference, int)
            if reference not in self.objects:
                raise SnapshotLostError("the snapshot is lost: OwnerDiedError")
            yield self.objects[reference]

    def lose_everything(self) -> None:
        self.objects.clear()

    def publish(
        self,
        tensors: Mapping[str, torch.Tensor],
        *,
        policy_version: int,
        canary_token_ids: Sequence[int] = (1, 2),
        canary_logprobs: FloatArray | None = None,
        bucket_bytes: int = 1 << 16,
    ) -> WeightsManifest:
        """The manifest of a snapshot of `tensors` as they are."""
        planned = plan_buckets(
            list(tensors),
            [tuple(tensor.shape) for tensor in tensors.values()],
            [str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()],
            bucket_bytes=bucket_bytes,
        )
        buckets: list[Bucket] = []
        references = []
        for bucket in planned:
            buffer = torch.zeros(bucket.num_bytes, dtype=torch.uint8)
            slots = []
            for slot in bucket.slots:
                slot_view(buffer, slot).copy_(tensors[slot.name].detach())
                value, content = both_sums(tensors[slot.name]).tolist()
                slots.append(replace(slot, checksum=value, content_sum=content))
            buckets.append(replace(bucket, slots=tuple(slots)))
            references.append(self.put(buffer.numpy()))
        return WeightsManifest(
            policy_version=policy_version,
            architecture="Qwen2ForCausalLM",
            buckets=tuple(buckets),
            digest=snapshot_digest(slot for bucket in buckets for slot in bucket.slots),
            references=tuple(references),
            canary_token_ids=tuple(canary_token_ids),
            canary_logprobs=canary_logprobs,
            publish_seconds=0.0,
        )


def some_tensors() -> dict[str, torch.Tensor]:
    """Six tensors of odd sizes, layouts and types."""
    generator = torch.Generator().manual_seed(0)
    return {
        "embedding": torch.randn(7, 3, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(3.5),
        "transposed": torch.randn(4, 6, generator=generator).t(),
        "large": torch.randn(100, generator=generator),
        "counter": torch.tensor([1, 2, 3]),
    }


def corrupted(buffer: Bytes, *, position: int) -> Bytes:
    """A copy with one bit flipped."""
    copy = np.array(buffer)
    copy[position] ^= 1
    return copy
