"""Bucket layout by hand, and the manifest as plain values."""

import json

import numpy as np
import pytest

from system.weights.manifest import from_plain, plan_buckets, to_plain
from tests.weights.memory_store import MemoryStore, some_tensors


def test_buckets_are_filled_in_order_and_slots_are_aligned() -> None:
    buckets = plan_buckets(
        ["a", "b", "c", "d"], [(3,), (2, 2), (8,), (1,)], ["float32", "bfloat16", "float32", "int64"], bucket_bytes=48
    )
    layout = [[(slot.name, slot.offset_bytes, slot.num_bytes) for slot in bucket.slots] for bucket in buckets]
    # a: 12 bytes at 0; b: 8 bytes at 16; c would end at 32 + 32 = 64 > 48; d at 32
    assert layout == [[("a", 0, 12), ("b", 16, 8)], [("c", 0, 32), ("d", 32, 8)]]
    assert [bucket.num_bytes for bucket in buckets] == [24, 40]


def test_a_tensor_larger_than_a_bucket_travels_alone() -> None:
    buckets = plan_buckets(["small", "large", "last"], [(1,), (100,), (1,)], ["float32"] * 3, bucket_bytes=64)
    assert [[slot.name for slot in bucket.slots] for bucket in buckets] == [["small"], ["large"], ["last"]]


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="a has dtype 'float33'"):
        plan_buckets(["a"], [(1,)], ["float33"], bucket_bytes=64)


def test_a_manifest_survives_json_without_its_references() -> None:
    canary = np.array([-0.1, -2.5], np.float32)
    manifest = MemoryStore().publish(some_tensors(), policy_version=3, canary_logprobs=canary, bucket_bytes=100)
    read = from_plain(json.loads(json.dumps(to_plain(manifest))), references=manifest.references)
    assert (read.buckets, read.digest, read.policy_version) == (manifest.buckets, manifest.digest, 3)
    assert read.canary_logprobs is not None
    assert read.canary_logprobs.tolist() == canary.tolist()
    assert read.num_bytes == 84 + 10 + 4 + 96 + 400 + 24
