"""What a checksum must see, and that a bucket with other bytes is refused by the name of its tensor."""

import pytest
import torch

from system.errors import WeightSyncError
from system.weights.digest import both_sums, checked_buckets, checksum, content_sum, snapshot_digest
from tests.weights.memory_store import MemoryStore, corrupted, some_tensors


def sum_of(tensor: torch.Tensor) -> int:
    return int(checksum(tensor))


def test_checksum_sees_one_bit_anywhere_in_a_tensor_of_several_chunks() -> None:
    weight = torch.arange(1_200_001, dtype=torch.float32)  # 4.8 MB: five chunks and an odd tail
    original = sum_of(weight)
    for position in (0, 1, 524_288, 1_199_999, 1_200_000):
        changed = weight.clone()
        changed.view(torch.int32)[position] ^= 1
        assert sum_of(changed) != original, position


@pytest.mark.parametrize("word", [0, -1, 7, 1 << 62, -(1 << 63)])
def test_both_sums_see_that_all_bits_of_a_word_are_flipped(word: int) -> None:
    weight = torch.tensor([5, word, 9], dtype=torch.int64)
    flipped = weight.clone()
    flipped[1] = ~word
    assert sum_of(flipped) != sum_of(weight)
    assert int(content_sum(flipped)) != int(content_sum(weight))
    assert both_sums(flipped).tolist() == [sum_of(flipped), int(content_sum(flipped))]


def test_checksum_sees_exchanged_values_and_chunks() -> None:
    weight = torch.arange(600_000, dtype=torch.float64)
    exchanged_values = weight.clone()
    exchanged_values[[10, 20]] = weight[[20, 10]]
    chunk = 1 << 17
    exchanged_chunks = torch.cat([weight[chunk : 2 * chunk], weight[:chunk], weight[2 * chunk :]])
    assert len({sum_of(weight), sum_of(exchanged_values), sum_of(exchanged_chunks)}) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_checksum_sees_an_even_number_of_flipped_signs(dtype: torch.dtype) -> None:
    weight = torch.arange(1, 17).to(dtype)
    flips = [list(range(16)), *([first, second] for first in range(16) for second in range(first))]
    sums = {sum_of(weight)}
    for positions in flips:
        flipped = weight.clone()
        flipped[positions] *= -1
        sums.add(sum_of(flipped))
    assert len(sums) == 1 + len(flips)


def test_checksum_depends_on_values_only_not_on_memory_layout() -> None:
    weight = torch.randn(37, 5)
    assert sum_of(weight) == sum_of(weight.t().contiguous().t())
    storage = torch.zeros(37 * 5 + 1)
    storage[1:] = weight.reshape(-1)  # starts at 4 bytes: no int64 view of it is possible
    assert sum_of(weight) == sum_of(storage[1:].view(37, 5))


def test_digest_sees_names_shapes_order_and_values() -> None:
    weight = torch.arange(6.0)
    variants: list[dict[str, torch.Tensor]] = [
        {"a": weight, "b": weight + 1},
        {"b": weight + 1, "a": weight},
        {"a": weight, "c": weight + 1},
        {"a": weight.view(2, 3), "b": weight + 1},
        {"a": weight, "b": weight + 2},
    ]
    digests = {snapshot_digest(MemoryStore().publish(each, policy_version=1).slots) for each in variants}
    assert len(digests) == len(variants)


@pytest.mark.parametrize(("position", "name"), [(0, "embedding"), (97, "half")])
def test_a_bucket_with_another_bit_is_refused_by_the_name_of_its_tensor(position: int, name: str) -> None:
    store = MemoryStore()
    manifest = store.publish(some_tensors(), policy_version=4)
    good = [torch.tensor(buffer) for buffer in store.fetch(manifest.references)]
    loaded = dict(pair for pairs in checked_buckets(good, manifest) for pair in pairs)
    assert all(torch.equal(loaded[key], value) for key, value in some_tensors().items())
    bad = torch.from_numpy(corrupted(good[0].numpy(), position=position))
    with pytest.raises(WeightSyncError, match=f"{name} of policy version 4 arrived with other bytes than sent"):
        list(checked_buckets([bad, *good[1:]], manifest))
