"""Checksums of tensors and the digest of a snapshot: they detect staleness, loss, reordering and corruption.

Not a protection against adversaries: who may send is decided by the run's secret (broadcast.py) and by Ray.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator

import torch

from system.errors import WeightSyncError
from system.weights.manifest import Bucket, TensorSlot, WeightsManifest

_CHUNK_WORDS = 1 << 17  # 1 MiB of scratch, which stays in a processor's cache


def checksum(tensor: torch.Tensor) -> torch.Tensor:
    """int64 scalar on the tensor's device: sees every change, also of the order. One chunk of scratch memory.

    With 64-bit little-endian words x[i] (last word zero-padded), modulo 2^64,

        checksum     c = sum_j m^j * sum_i mix(x[j * C + i]) * w[i]        C words a chunk, m and w[i] odd
        content sum  s = sum_i mix(x[i])                                   mix(v) = v xor (v >> 29)

    A change of any single word changes c for certain, because every factor and `mix` is invertible. Without `mix`
    an even number of flipped signs (the highest bit) would cancel.
    """
    weights = _chunk_weights(tensor.device)
    return _joined([mixed.mul_(weights[: mixed.numel()]).sum() for mixed in _mixed_chunks(tensor)])


def content_sum(tensor: torch.Tensor) -> torch.Tensor:
    """int64 scalar: s of `checksum`, which does not see the order.

    So it can be compared with what an engine holds in fused, sharded or zero-padded matrices, as long as words are not
    torn apart.
    """
    return torch.stack([mixed.sum() for mixed in _mixed_chunks(tensor)]).sum()


def both_sums(tensor: torch.Tensor) -> torch.Tensor:
    """int64 [2]: (checksum, content sum) in one pass."""
    weights = _chunk_weights(tensor.device)
    contents, sums = [], []
    for mixed in _mixed_chunks(tensor):
        contents.append(mixed.sum())
        sums.append(mixed.mul_(weights[: mixed.numel()]).sum())
    return torch.stack([_joined(sums), torch.stack(contents).sum()])


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
    for slot, value in zip(bucket.slots, checksums, strict=True):
        if value != slot.checksum:
            raise WeightSyncError(f"{slot.name} of policy version {policy_version} arrived with other bytes than sent")


def checked_buckets(
    buffers: Iterable[torch.Tensor], manifest: WeightsManifest
) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """The named tensors of each bucket, once its bytes are proved. Raises WeightSyncError."""
    for buffer, bucket in zip(buffers, manifest.buckets, strict=True):
        check_bucket(buffer, bucket, policy_version=manifest.policy_version)
        yield named_tensors(buffer, bucket)


def _mixed_chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """int64 [<= C]: mix of the words of each chunk, to be written over; at least one chunk."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, max(data.numel(), 1), _CHUNK_WORDS * 8):
        words = _as_words(data[start : start + _CHUNK_WORDS * 8])
        # without the mask `>>` would drag the sign along, and a word and its complement would be mixed into the same
        yield (words >> 29).bitwise_and_((1 << 35) - 1).bitwise_xor_(words)


def _joined(sums: list[torch.Tensor]) -> torch.Tensor:
    """sum_j m^j * sums[j], modulo 2^64."""
    if len(sums) == 1:
        return sums[0]
    powers = [_signed(pow(0xD1342543DE82EF95, j, 1 << 64)) for j in range(len(sums))]
    return (torch.stack(sums) * torch.tensor(powers, device=sums[0].device)).sum()


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
