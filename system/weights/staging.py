"""A snapshot on its way from an actor to engine processes that do not share its memory: a file that they map.

The actor copies the buckets there while the engine still generates, and checks the very bytes that the engine will
map; the engine's pause then holds the load alone.
"""

import itertools
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from system.weights.digest import check_bucket
from system.weights.manifest import Bucket, WeightsManifest
from system.weights.store import Bytes

_ALIGNMENT_BYTES = 64


@contextmanager
def staged(buffers: Iterable[Bytes], manifest: WeightsManifest) -> Iterator[str]:
    """The path under which every process of this user can map the snapshot, until the context ends.

    The file has no name and lives in memory only: nothing of it is left when this process is killed. Raises
    WeightSyncError when a bucket is not what was published, and what `buffers` raises.
    """
    descriptor = os.memfd_create("credence-weights")
    try:
        offsets, num_bytes = _layout(manifest.buckets)
        os.truncate(descriptor, max(num_bytes, 1))
        with mmap.mmap(descriptor, max(num_bytes, 1)) as memory:
            for buffer, bucket, offset in zip(buffers, manifest.buckets, offsets, strict=True):
                memory[offset : offset + bucket.num_bytes] = buffer.data
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        for copy, bucket in zip(staged_buckets(path, manifest.buckets), manifest.buckets, strict=True):
            check_bucket(copy, bucket, policy_version=manifest.policy_version)
        yield path
    finally:
        os.close(descriptor)


def staged_buckets(path: str, buckets: Sequence[Bucket]) -> Iterator[torch.Tensor]:
    """The buckets that were staged at `path`, uint8 on the CPU, mapped and not copied."""
    offsets, _ = _layout(buckets)
    for bucket, offset in zip(buckets, offsets, strict=True):
        # mode c: torch wants writable memory, but nobody writes
        yield torch.from_numpy(np.memmap(path, np.uint8, mode="c", offset=offset, shape=(bucket.num_bytes,)))


def _layout(buckets: Sequence[Bucket]) -> tuple[list[int], int]:
    """Where each bucket starts in the file, and its size."""
    sizes = [-(-bucket.num_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for bucket in buckets]
    *offsets, end = itertools.accumulate(sizes, initial=0)
    return offsets, end
