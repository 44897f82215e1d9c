"""What another process maps is what was published, and nothing of it is left."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from system.errors import SnapshotLostError, WeightSyncError
from system.weights.digest import checked_buckets
from system.weights.staging import staged, staged_buckets
from tests.weights.memory_store import MemoryStore, corrupted, some_tensors


def test_another_process_reads_the_very_bytes() -> None:
    store = MemoryStore()
    manifest = store.publish(some_tensors(), policy_version=1, bucket_bytes=100)
    assert len(manifest.buckets) > 2
    with staged(store.fetch(manifest.references), manifest) as path:
        loaded = dict(
            pair for pairs in checked_buckets(staged_buckets(path, manifest.buckets), manifest) for pair in pairs
        )
        read = subprocess.run([sys.executable, "-c", f"print(open({path!r}, 'rb').read().hex())"], capture_output=True)
    assert all(torch.equal(loaded[name], value) for name, value in some_tensors().items())
    first = np.concatenate([*store.fetch(manifest.references[:1])])
    assert bytes.fromhex(read.stdout.decode())[: len(first)] == first.tobytes()
    assert not Path(path).exists()
    assert not list(Path("/dev/shm").glob("credence-*"))


def test_a_corrupted_or_lost_bucket_is_noticed_before_any_engine_hears_of_it() -> None:
    store = MemoryStore()
    manifest = store.publish(some_tensors(), policy_version=1)
    buffers = [corrupted(each, position=5) for each in store.fetch(manifest.references)]
    with pytest.raises(WeightSyncError, match="embedding"), staged(buffers, manifest):
        pytest.fail("a corrupted snapshot was handed out")
    store.lose_everything()
    with pytest.raises(SnapshotLostError), staged(store.fetch(manifest.references), manifest):
        pytest.fail("a lost snapshot was handed out")
