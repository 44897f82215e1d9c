"""Checksums of tensors and the digest of a snapshot: they detect staleness, loss, reordering and corruption.

Not a protection against adversaries: who may send is decided by the run's secret (broadcast.py) and by Ray.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator

import torch

from system.errors import WeightSyncError
from system.weights.manifest import Bucket, TensorSlot, WeightsManifest

_CHUNK_WORDS = 1 << 18  # 2 MiB of scratch for one multiplication


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """int64 [2]: the tensor's bytes as (checksum, content sum), on its device with one chunk of scratch memory.

    With 64-bit little-endian words x[i] (last word zero-padded), modulo 2^64,

        checksum     c = sum_j m^j * sum_i mix(x[j * C + i]) * w[i]        C words a chunk, m and w[i] odd
        content sum  s = sum_i mix(x[i])                                   mix(v) = v xor (v >> 29)

    A change of any single word changes c for certain, because every factor and `mix` is invertible. Without `mix`
    an even number of flipped signs (the highest bit) would cancel. s does not see the order: so it can be compared
    with what an engine holds in fused, sharded or zero-padded matrices, as long as words are not torn apart.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    content = total.clone()
    weights = _chunk_weights(data.device)
    for start in range(0, data.numel(), _CHUNK_WORDS * 8):
        words = _as_words(data[start : start + _CHUNK_WORDS * 8])
        mixed = (words >> 29).bitwise_and_((1 << 35) - 1).bitwise_xor_(words)  # `>>` alone drags the sign along
        content = content + mixed.sum()
        total = total * _signed(0xD1342543DE82EF95) + mixed.mul_(weights[: words.numel()]).sum()
    return torch.stack([total, content])


def snapshot_digest(slots: Iterable[TensorSlot]) -> str:
    """BLAKE2b over (name, dtype, shape, checksum) of all tensors in their order, as 32 hexadecimal characters."""
    digest = hashlib.blake2b(digest_size=16)
    for slot in slots:
        digest.update(f"{slot.name}|{slot.dtype}|{slot.shape}|{slot.checksum}\n".encode())
    return digest.hexdigest()


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a slot such as "float32"."""
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def slot_view(buffer: torch.Tensor, slot: TensorSlot) -> torch.Tensor:
    """The tensor of `slot` inside its bucket's flat uint8 buffer, without a copy."""
    flat = buffer[slot.offset_bytes : slot.offset_bytes + slot.num_bytes]
    return flat.view(torch_dtype(slot.dtype)).view(slot.shape)


def named_tensors(buffer: torch.Tensor, bucket: Bucket) -> list[tuple[str, torch.Tensor]]:
    """All tensors of a bucket by name, as views of its buffer."""
    return [(slot.name, slot_view(buffer, slot)) for slot in bucket.slots]


def check_bucket(buffer: torch.Tensor, bucket: Bucket, *, policy_version: int) -> None:
    """Raises WeightSyncError naming the first tensor whose bytes are not those that were published."""
    checksums = torch.stack([checksum(tensor) for _, tensor in named_tensors(buffer, bucket)]).tolist()
    for slot, (value, _) in zip(bucket.slots, checksums, strict=True):
        if value != slot.checksum:
            raise WeightSyncError(f"{slot.name} of policy version {policy_version} arrived with other bytes than sent")


def checked_buckets(
    buffers: Iterable[torch.Tensor], manifest: WeightsManifest
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """The named tensors of each bucket, once its bytes are proved. Raises WeightSyncError."""
    for buffer, bucket in zip(buffers, manifest.buckets, strict=True):
        check_bucket(buffer, bucket, policy_version=manifest.policy_version)
        yield named_tensors(buffer, bucket)


@functools.cache
def _chunk_weights(device: torch.device) -> torch.Tensor:
    """Odd int64 [C]: an odd factor is invertible modulo 2^64, so no word can vanish from the sum."""
    positions = torch.arange(1, _CHUNK_WORDS + 1, dtype=torch.int64, device=device)
    mixed = positions * _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> 29)) * _signed(0xBF58476D1CE4E5B9)
    return (mixed ^ (mixed >> 32)) | 1


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _as_words(data: torch.Tensor) -> torch.Tensor:
    """uint8 [n] -> int64 [ceil(n / 8)], padded with zero bytes."""
    remainder = data.numel() % 8
    if remainder:
        data = torch.cat([data, data.new_zeros(8 - remainder)])
    elif data.storage_offset() % 8:
        data = data.clone()
    return data.view(torch.int64)
