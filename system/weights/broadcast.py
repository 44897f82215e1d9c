"""The collective fast path: one broadcast of a snapshot's buckets to receivers that are all there anyway.

Rank 0 (learner) sends, ranks 1 .. world_size-1 receive; nothing but the flat buckets of the manifest travels.
Never used to admit a receiver, and whatever a broken broadcast leaves behind loads from the store.

    WeightGroup(spec, rank)             all ranks; rank 0 listens on its node's address
    send_buckets | receive_buckets      bucket k is on its way while k+1 is packed / k-1 unpacked
    call_off(spec, reason)              anybody with the secret: the ranks stop waiting for one that is known to be lost
"""

import contextlib
import hashlib
import hmac
import os
import socket
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from system.errors import DeadlineError, WeightSyncError
from system.weights.manifest import WeightGroupSpec, WeightsManifest

_POLL_SECONDS = 0.0002
_JOIN_POLL_SECONDS = 0.005
_CALLED_OFF = "called off"  # key of the group's store: the reason
_CALL_OFF_CHECK_SECONDS = 0.05  # between two looks at it


class WeightGroup:
    """A process group of its own (never the default group) for one membership of sender and receivers.

    Construction returns when all `spec.world_size` ranks are there. Raises DeadlineError naming the
    ranks (or the sender's address) that did not come within `spec.timeout_seconds`, WeightSyncError when it
    was called off meanwhile.
    """

    def __init__(self, spec: WeightGroupSpec, *, rank: int) -> None:
        self.spec = spec
        self.rank = rank
        deadline = time.monotonic() + spec.timeout_seconds
        self._store = _open_store(spec, is_sender=rank == 0)
        # nobody can guess the names of the keys without the secret, so that a stranger can neither read nor set them
        self._keys = dist.PrefixStore(_proof(spec, of="prefix"), self._store)
        _meet(self._keys, spec, rank=rank, deadline=deadline)
        try:
            self._group = _connect(self._keys, spec, rank=rank)
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

        Raises DeadlineError after `deadline` (monotonic seconds), WeightSyncError when a peer broke off or when the
        group was called off.
        """
        next_look = time.monotonic() + _CALL_OFF_CHECK_SECONDS
        while not work.is_completed():
            now = time.monotonic()
            if now > deadline:
                raise DeadlineError(self._peers(), what=what, seconds=self.spec.timeout_seconds)
            if now > next_look:
                _raise_if_called_off(self._keys, self.spec, what=what)
                next_look = now + _CALL_OFF_CHECK_SECONDS
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
        del self._group, self._keys, self._store

    def _peers(self) -> str:
        if self.rank == 0:
            return f"a receiver (ranks 1 to {self.spec.world_size - 1}) of weight group {self.spec.group_name}"
        return f"the weight sender at {self.spec.host}:{self.spec.port}"


def call_off(spec: WeightGroupSpec, *, reason: str) -> None:
    """Make all ranks that wait in the group, or for it to open, raise WeightSyncError now. Never raises.

    For whoever knows that a rank is lost: the others cannot see it before the deadline while they wait for it.
    """
    with contextlib.suppress(DeadlineError, dist.DistError):  # the sender has left: there is nothing to call off
        keys = dist.PrefixStore(_proof(spec, of="prefix"), _open_store(spec, is_sender=False))
        keys.set(_CALLED_OFF, reason)


def send_buckets(
    group: WeightGroup, buffers: Iterable[torch.Tensor], *, manifest: WeightsManifest, device: torch.device
) -> None:
    """Send the buckets of `manifest`, from `device` (the CPU with Gloo). Raises DeadlineError, WeightSyncError."""
    deadline = time.monotonic() + group.spec.timeout_seconds
    what = f"send weights of policy version {manifest.policy_version}"
    in_flight: list[tuple[dist.Work, torch.Tensor]] = []
    for buffer in buffers:
        on_device = buffer.to(device)
        in_flight.append((group.broadcast(on_device), on_device))
        if len(in_flight) == 2:
            group.wait(in_flight.pop(0)[0], deadline=deadline, what=what)
    for work, _ in in_flight:
        group.wait(work, deadline=deadline, what=what)


def receive_buckets(group: WeightGroup, manifest: WeightsManifest, *, device: torch.device) -> Iterator[torch.Tensor]:
    """The buckets of `manifest` as they arrive, uint8 on `device`. Raises DeadlineError, WeightSyncError.

    Every bucket has a fresh buffer, because a loader may keep views until its layer is complete.
    """
    deadline = time.monotonic() + group.spec.timeout_seconds
    what = f"send weights of policy version {manifest.policy_version}"
    in_flight: list[tuple[torch.Tensor, dist.Work]] = []
    for bucket in manifest.buckets:
        buffer = torch.empty(bucket.num_bytes, dtype=torch.uint8, device=device)
        in_flight.append((buffer, group.broadcast(buffer)))
        if len(in_flight) == 2:
            first, work = in_flight.pop(0)
            group.wait(work, deadline=deadline, what=what)
            yield first
    for last, work in in_flight:
        group.wait(work, deadline=deadline, what=what)
        yield last


def transfer_device(spec: WeightGroupSpec, *, device: torch.device) -> torch.device:
    """Where the buffers of a broadcast lie: NCCL moves device memory, Gloo host memory."""
    return device if spec.backend == "nccl" else torch.device("cpu")


def _connect(store: dist.Store, spec: WeightGroupSpec, *, rank: int) -> Any:
    """A ProcessGroupGloo or ProcessGroupNCCL; torch's type stubs leave out what they inherit."""
    timeout = timedelta(seconds=spec.timeout_seconds)
    if spec.backend == "gloo":
        return dist.ProcessGroupGloo(store, rank, spec.world_size, timeout)
    # When a peer is lost, clean up this communicator only; the default takes the whole process down.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "2"
    os.environ["TORCH_NCCL_NONBLOCKING_TIMEOUT"] = str(int(spec.timeout_seconds) + 1)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    options.config.blocking = 0  # a start that waits for a lost peer ends at the time-out
    return dist.ProcessGroupNCCL(store, rank, spec.world_size, options)


def _open_store(spec: WeightGroupSpec, *, is_sender: bool) -> dist.TCPStore:
    timeout = timedelta(seconds=spec.timeout_seconds)
    if not is_sender:
        try:
            return dist.TCPStore(spec.host, spec.port, is_master=False, timeout=timeout, wait_for_workers=False)
        except dist.DistNetworkError as error:
            who = f"the weight sender at {spec.host}:{spec.port}"
            what = f"open weight group {spec.group_name}"
            raise DeadlineError(who, what=what, seconds=spec.timeout_seconds) from error
    # torch would listen on all interfaces: it is given a socket that is bound to the node's address
    listener = socket.socket(socket.AF_INET6 if ":" in spec.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((spec.host, spec.port))
        listener.listen()
        descriptor = os.dup(listener.fileno())
        return dist.TCPStore(
            spec.host, spec.port, is_master=True, timeout=timeout, wait_for_workers=False, master_listen_fd=descriptor
        )
    except (OSError, dist.DistNetworkError) as error:
        raise WeightSyncError(f"the weight sender cannot listen on {spec.host}:{spec.port}: {error}") from error
    finally:
        listener.close()


def _meet(store: dist.Store, spec: WeightGroupSpec, *, rank: int, deadline: float) -> None:
    """Every rank signs in; rank 0 opens the door when all are there, so that it can name who is missing.

    A rank signs with the run's secret; one that cannot is not counted as there, and gets no open door.
    """
    door = "open"
    what = f"open weight group {spec.group_name}"
    if rank != 0:
        store.set(f"joined/{rank}", _proof(spec, of=f"rank {rank}"))
        is_open = _wait_for_key(store, door, spec, deadline=deadline)
        if not is_open or not hmac.compare_digest(store.get(door).decode(), _proof(spec, of=door)):
            who = f"the weight sender at {spec.host}:{spec.port} (it waits for all {spec.world_size} ranks)"
            raise DeadlineError(who, what=what, seconds=spec.timeout_seconds)
        return
    missing = []
    for other in range(1, spec.world_size):
        key = f"joined/{other}"
        is_there = _wait_for_key(store, key, spec, deadline=deadline)
        if not is_there or not hmac.compare_digest(store.get(key).decode(), _proof(spec, of=f"rank {other}")):
            missing.append(str(other))
    if missing:
        who = f"weight receiver rank {', '.join(missing)}"
        raise DeadlineError(who, what=f"join weight group {spec.group_name}", seconds=spec.timeout_seconds)
    store.set(door, _proof(spec, of=door))


def _proof(spec: WeightGroupSpec, *, of: str) -> str:
    message = f"{spec.group_name}/{of}".encode()
    return hmac.new(spec.secret.encode(), message, hashlib.sha256).hexdigest()


def _wait_for_key(store: dist.Store, key: str, spec: WeightGroupSpec, *, deadline: float) -> bool:
    """Whether `key` was set before `deadline`. Raises WeightSyncError when the group is called off."""
    what = f"open weight group {spec.group_name}"
    while not _has(store, key, spec, what=what):  # TCPStore.wait would warn at each of its time-outs
        _raise_if_called_off(store, spec, what=what)
        if time.monotonic() > deadline:
            return False
        time.sleep(_JOIN_POLL_SECONDS)
    return True


def _raise_if_called_off(store: dist.Store, spec: WeightGroupSpec, *, what: str) -> None:
    if _has(store, _CALLED_OFF, spec, what=what):
        raise WeightSyncError(f"{what}: called off: {store.get(_CALLED_OFF).decode()}")


def _has(store: dist.Store, key: str, spec: WeightGroupSpec, *, what: str) -> bool:
    try:
        return bool(store.check([key]))
    except dist.DistError as error:
        raise WeightSyncError(f"{what}: the weight sender at {spec.host}:{spec.port} has left: {error}") from error
