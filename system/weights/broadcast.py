"""The wire protocol of a weight broadcast, the same code for the sender and for every receiver.

Rank 0 (learner) sends, ranks 1 .. world_size-1 receive. Both sides derive the buckets from the
manifest, so nothing but flat byte buffers travels. Called by learner/weight_sender.py and by the
receivers in actors/; needs torch and torch.distributed only.

    describe_tensors -> WeightsManifest          rank 0, before the group meets
    WeightGroup(spec, rank)                      all ranks; rank 0 hosts the store
    broadcast_tensors | receive_tensors          bucket k is on its way while k+1 is packed / k-1 unpacked
"""

import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from system.errors import DeadlineError, WeightSyncError
from system.records import WeightGroupSpec, WeightsManifest

_ALIGNMENT_BYTES = 16  # a view of another dtype needs an aligned start
_CHUNK_WORDS = 1 << 18  # 2 MiB of scratch for one multiplication
_POLL_SECONDS = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlot:
    """Where one tensor lies in its bucket."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset_bytes: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Tensors that travel in one flat buffer of `num_bytes` (padding included)."""

    slots: tuple[TensorSlot, ...]
    num_bytes: int


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a manifest entry such as "float32". Raises ValueError for anything else."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"manifest names an unknown dtype {name!r}")
    return dtype


def plan_buckets(manifest: WeightsManifest, *, bucket_bytes: int) -> tuple[Bucket, ...]:
    """Fill buckets of at most `bucket_bytes` in manifest order; a larger tensor has a bucket of its own."""
    buckets: list[Bucket] = []
    slots: list[TensorSlot] = []
    end = 0
    for name, shape, dtype_name in zip(manifest.names, manifest.shapes, manifest.dtypes, strict=True):
        dtype = torch_dtype(dtype_name)
        num_bytes = dtype.itemsize
        for size in shape:
            num_bytes *= size
        start = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        if slots and start + num_bytes > bucket_bytes:
            buckets.append(Bucket(slots=tuple(slots), num_bytes=end))
            slots, start = [], 0
        slots.append(TensorSlot(name=name, shape=shape, dtype=dtype, offset_bytes=start, num_bytes=num_bytes))
        end = start + num_bytes
    if slots:
        buckets.append(Bucket(slots=tuple(slots), num_bytes=end))
    return tuple(buckets)


class TensorDigest:
    """Digest of named tensors in order: detects staleness, loss, reordering and corruption, not adversaries.

    Tensor k with 64-bit little-endian words x[i] (last word zero-padded) contributes, modulo 2^64,

        c_k = sum_j m^j * sum_i mix(x[j * C + i]) * w[i]        C words a chunk, m and w[i] odd
        mix(v) = v xor (v >> 29)

    computed on the tensor's device; a change of any single word changes c_k for certain, because
    every factor and `mix` is invertible. Without `mix` an even number of flipped signs (the highest
    bit) would cancel. The digest is BLAKE2b over (name, dtype, shape, c_k). Scratch memory is one
    chunk, whatever the tensor's size.
    """

    def __init__(self) -> None:
        self._headers: list[str] = []
        self._checksums: list[torch.Tensor] = []

    def update(self, name: str, tensor: torch.Tensor) -> None:
        """Add the next tensor. Nothing is copied to the host before `hexdigest`."""
        self._headers.append(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}")
        self._checksums.append(self._checksum(tensor.detach()))

    def hexdigest(self) -> str:
        """32 hexadecimal characters."""
        digest = hashlib.blake2b(digest_size=16)
        values = torch.stack(self._checksums).tolist() if self._checksums else []
        for header, value in zip(self._headers, values, strict=True):
            digest.update(f"{header}|{value}\n".encode())
        return digest.hexdigest()

    def _checksum(self, tensor: torch.Tensor) -> torch.Tensor:
        data = tensor.contiguous().reshape(-1).view(torch.uint8)
        total = torch.zeros((), dtype=torch.int64, device=data.device)
        weights = _chunk_weights(data.device)
        for start in range(0, data.numel(), _CHUNK_WORDS * 8):
            words = _as_words(data[start : start + _CHUNK_WORDS * 8])
            mixed = (words >> 29).bitwise_and_((1 << 35) - 1).bitwise_xor_(words)  # `>>` alone drags the sign along
            total = total * _signed(0xD1342543DE82EF95) + mixed.mul_(weights[: words.numel()]).sum()
        return total


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


def describe_tensors(named_tensors: Mapping[str, torch.Tensor], *, policy_version: int) -> WeightsManifest:
    """Manifest of `named_tensors` in their order, with the digest of their present values."""
    digest = TensorDigest()
    for name, tensor in named_tensors.items():
        digest.update(name, tensor)
    return WeightsManifest(
        policy_version=policy_version,
        names=tuple(named_tensors),
        shapes=tuple(tuple(tensor.shape) for tensor in named_tensors.values()),
        dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for tensor in named_tensors.values()),
        num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in named_tensors.values()),
        digest=digest.hexdigest(),
    )


class WeightGroup:
    """A process group of its own (never the default group) for one membership of sender and receivers.

    Construction returns when all `spec.world_size` ranks are there. Raises DeadlineError naming the
    ranks (or the sender's address) that did not come within `spec.timeout_seconds`.
    """

    def __init__(self, spec: WeightGroupSpec, *, rank: int) -> None:
        self.spec = spec
        self.rank = rank
        deadline = time.monotonic() + spec.timeout_seconds
        self._store = _open_store(spec, rank=rank)
        _meet(self._store, spec, rank=rank, deadline=deadline)
        try:
            self._group = _connect(self._store, spec, rank=rank)
        except RuntimeError as error:
            raise WeightSyncError(f"rank {rank} cannot connect weight group {spec.group_name}: {error}") from error

    def broadcast(self, buffer: torch.Tensor) -> dist.Work:
        """Start the broadcast of `buffer` from rank 0; finish it with `wait`."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        return self._group.broadcast([buffer], options)

    def wait(self, work: dist.Work, *, deadline: float, what: str) -> None:
        """Wait until `work` is done.

        Raises DeadlineError after `deadline` (monotonic seconds), WeightSyncError when a peer broke off.
        """
        while not work.is_completed():
            if time.monotonic() > deadline:
                raise DeadlineError(self._peers(), what=what, seconds=self.spec.timeout_seconds)
            time.sleep(_POLL_SECONDS)
        try:
            work.wait()
        except RuntimeError as error:
            if time.monotonic() > deadline or "imed out" in str(error):
                raise DeadlineError(self._peers(), what=what, seconds=self.spec.timeout_seconds) from error
            raise WeightSyncError(f"{what}: {self._peers()} broke off: {error}") from error

    def close(self) -> None:
        """Release connections; the group cannot be used afterwards."""
        if self.spec.backend == "nccl":
            self._group.abort()
        del self._group, self._store

    def _peers(self) -> str:
        if self.rank == 0:
            return f"a receiver (ranks 1 to {self.spec.world_size - 1}) of weight group {self.spec.group_name}"
        return f"the weight sender at {self.spec.host}:{self.spec.port}"


def _connect(store: dist.TCPStore, spec: WeightGroupSpec, *, rank: int) -> Any:
    """A ProcessGroupGloo or ProcessGroupNCCL; torch's type stubs leave out what they inherit."""
    prefixed = dist.PrefixStore(spec.group_name, store)
    timeout = timedelta(seconds=spec.timeout_seconds)
    if spec.backend == "gloo":
        return dist.ProcessGroupGloo(prefixed, rank, spec.world_size, timeout)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(prefixed, rank, spec.world_size, options)


def _open_store(spec: WeightGroupSpec, *, rank: int) -> dist.TCPStore:
    try:
        return dist.TCPStore(
            spec.host,
            spec.port,
            world_size=None,
            is_master=rank == 0,
            timeout=timedelta(seconds=spec.timeout_seconds),
            wait_for_workers=False,
        )
    except dist.DistNetworkError as error:
        if rank == 0:
            raise WeightSyncError(f"the weight sender cannot listen on {spec.host}:{spec.port}: {error}") from error
        who = f"the weight sender at {spec.host}:{spec.port}"
        raise DeadlineError(who, what=f"open weight group {spec.group_name}", seconds=spec.timeout_seconds) from error


def _meet(store: dist.TCPStore, spec: WeightGroupSpec, *, rank: int, deadline: float) -> None:
    """Every rank signs in; rank 0 opens the door when all are there, so that it can name who is missing."""
    keys = {other: f"{spec.group_name}/joined/{other}" for other in range(1, spec.world_size)}
    door = f"{spec.group_name}/open"
    if rank != 0:
        store.set(keys[rank], "1")
        if not _wait_for_key(store, door, deadline=deadline):
            who = f"the weight sender at {spec.host}:{spec.port} (it waits for all {spec.world_size} ranks)"
            raise DeadlineError(who, what=f"open weight group {spec.group_name}", seconds=spec.timeout_seconds)
        return
    missing = [other for other, key in keys.items() if not _wait_for_key(store, key, deadline=deadline)]
    if missing:
        ranks = ", ".join(str(other) for other in missing)
        raise DeadlineError(
            f"weight receiver rank {ranks}", what=f"join weight group {spec.group_name}", seconds=spec.timeout_seconds
        )
    store.set(door, "1")


def _wait_for_key(store: dist.TCPStore, key: str, *, deadline: float) -> bool:
    try:
        store.wait([key], timedelta(seconds=max(deadline - time.monotonic(), 0.01)))
    except dist.DistError:
        return False
    return True


def broadcast_tensors(
    group: WeightGroup, *, named_tensors: Mapping[str, torch.Tensor], manifest: WeightsManifest, device: torch.device
) -> None:
    """Send `named_tensors` as `manifest` describes them; buffers live on `device`.

    Raises ValueError when the tensors are not those of the manifest, DeadlineError, WeightSyncError.
    """
    _check_tensors(named_tensors, manifest=manifest)
    deadline = time.monotonic() + group.spec.timeout_seconds
    what = f"send weights of policy version {manifest.policy_version}"
    in_flight: list[tuple[dist.Work, torch.Tensor]] = []
    for bucket in plan_buckets(manifest, bucket_bytes=group.spec.bucket_bytes):
        buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8, device=device)
        for slot in bucket.slots:
            _slot_view(buffer, slot).copy_(named_tensors[slot.name].detach())
        in_flight.append((group.broadcast(buffer), buffer))
        if len(in_flight) == 2:
            group.wait(in_flight.pop(0)[0], deadline=deadline, what=what)
    for work, _ in in_flight:
        group.wait(work, deadline=deadline, what=what)


def receive_tensors(
    group: WeightGroup,
    *,
    manifest: WeightsManifest,
    device: torch.device,
    load: Callable[[Sequence[tuple[str, torch.Tensor]]], object],
) -> str:
    """Receive what `manifest` announces, hand each bucket's named tensors to `load`, return their digest.

    Every bucket has a fresh buffer, because a loader may keep views until its layer is complete.
    Raises DeadlineError, WeightSyncError.
    """
    deadline = time.monotonic() + group.spec.timeout_seconds
    what = f"send weights of policy version {manifest.policy_version}"
    digest = TensorDigest()
    for bucket, buffer in _received_buckets(group, manifest=manifest, device=device, deadline=deadline, what=what):
        tensors = [(slot.name, _slot_view(buffer, slot)) for slot in bucket.slots]
        for name, tensor in tensors:
            digest.update(name, tensor)
        load(tensors)
    return digest.hexdigest()


def _received_buckets(
    group: WeightGroup, *, manifest: WeightsManifest, device: torch.device, deadline: float, what: str
) -> Iterator[tuple[Bucket, torch.Tensor]]:
    in_flight: list[tuple[Bucket, torch.Tensor, dist.Work]] = []
    for bucket in plan_buckets(manifest, bucket_bytes=group.spec.bucket_bytes):
        buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8, device=device)
        in_flight.append((bucket, buffer, group.broadcast(buffer)))
        if len(in_flight) == 2:
            first, first_buffer, work = in_flight.pop(0)
            group.wait(work, deadline=deadline, what=what)
            yield first, first_buffer
    for last, last_buffer, work in in_flight:
        group.wait(work, deadline=deadline, what=what)
        yield last, last_buffer


def _slot_view(buffer: torch.Tensor, slot: TensorSlot) -> torch.Tensor:
    flat = buffer[slot.offset_bytes : slot.offset_bytes + slot.num_bytes]
    return flat.view(slot.dtype).view(slot.shape)


def _check_tensors(named_tensors: Mapping[str, torch.Tensor], *, manifest: WeightsManifest) -> None:
    if tuple(named_tensors) != manifest.names:
        raise ValueError("the tensors to send are not those of the manifest, in its order")
    for name, shape, dtype in zip(manifest.names, manifest.shapes, manifest.dtypes, strict=True):
        tensor = named_tensors[name]
        if tuple(tensor.shape) != shape or tensor.dtype != torch_dtype(dtype):
            raise ValueError(f"{name}: manifest says {dtype}{shape}, given {tensor.dtype}{tuple(tensor.shape)}")
