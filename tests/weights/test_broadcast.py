"""The wire protocol: bucket layout and digest by hand, broadcasts between threads over Gloo."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from system.errors import DeadlineError, WeightSyncError
from system.records import WeightGroupSpec, WeightsManifest
from system.weights.broadcast import (
    TensorDigest,
    WeightGroup,
    broadcast_tensors,
    describe_tensors,
    plan_buckets,
    receive_tensors,
)

CPU = torch.device("cpu")


@pytest.fixture
def make_spec() -> Callable[..., WeightGroupSpec]:
    def make(*, world_size: int, timeout_seconds: float = 20.0, bucket_bytes: int = 64) -> WeightGroupSpec:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return WeightGroupSpec(
            group_name="test",
            host="127.0.0.1",
            port=port,
            world_size=world_size,
            backend="gloo",
            timeout_seconds=timeout_seconds,
            bucket_bytes=bucket_bytes,
        )

    return make


def digest_of(*tensors: torch.Tensor) -> str:
    digest = TensorDigest()
    for tensor in tensors:
        digest.update("weight", tensor)
    return digest.hexdigest()


def manifest_of(**shapes_and_dtypes: tuple[tuple[int, ...], str]) -> WeightsManifest:
    return WeightsManifest(
        policy_version=1,
        names=tuple(shapes_and_dtypes),
        shapes=tuple(shape for shape, _ in shapes_and_dtypes.values()),
        dtypes=tuple(dtype for _, dtype in shapes_and_dtypes.values()),
        num_bytes=0,
        digest="",
    )


def test_buckets_are_filled_in_order_and_slots_are_aligned() -> None:
    manifest = manifest_of(a=((3,), "float32"), b=((2, 2), "bfloat16"), c=((8,), "float32"), d=((1,), "int64"))
    buckets = plan_buckets(manifest, bucket_bytes=48)
    layout = [[(slot.name, slot.offset_bytes, slot.num_bytes) for slot in bucket.slots] for bucket in buckets]
    # a: 12 bytes at 0; b: 8 bytes at 16; c would end at 32 + 32 = 64 > 48; d at 32
    assert layout == [[("a", 0, 12), ("b", 16, 8)], [("c", 0, 32), ("d", 32, 8)]]
    assert [bucket.num_bytes for bucket in buckets] == [24, 40]


def test_a_tensor_larger_than_a_bucket_travels_alone() -> None:
    manifest = manifest_of(small=((1,), "float32"), large=((100,), "float32"), last=((1,), "float32"))
    names = [[slot.name for slot in bucket.slots] for bucket in plan_buckets(manifest, bucket_bytes=64)]
    assert names == [["small"], ["large"], ["last"]]


def test_a_manifest_with_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="float33"):
        plan_buckets(manifest_of(a=((1,), "float33")), bucket_bytes=64)


def test_digest_sees_one_bit_anywhere_in_a_tensor_of_several_chunks() -> None:
    weight = torch.arange(1_200_001, dtype=torch.float32)  # 4.8 MB: three chunks and an odd tail
    original = digest_of(weight)
    for position in (0, 1, 524_288, 1_199_999, 1_200_000):
        changed = weight.clone()
        changed.view(torch.int32)[position] ^= 1
        assert digest_of(changed) != original, position


def test_digest_sees_exchanged_values_chunks_tensors_names_and_shapes() -> None:
    weight = torch.arange(600_000, dtype=torch.float64)
    originals = digest_of(weight)
    exchanged_values = weight.clone()
    exchanged_values[[10, 20]] = weight[[20, 10]]
    chunk = 1 << 18
    exchanged_chunks = torch.cat([weight[chunk : 2 * chunk], weight[:chunk], weight[2 * chunk :]])
    assert len({originals, digest_of(exchanged_values), digest_of(exchanged_chunks)}) == 3
    assert digest_of(weight, weight + 1) != digest_of(weight + 1, weight)
    assert digest_of(weight.view(2, -1)) != originals
    renamed = TensorDigest()
    renamed.update("other", weight)
    assert renamed.hexdigest() != originals


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_digest_sees_an_even_number_of_flipped_signs(dtype: torch.dtype) -> None:
    weight = torch.arange(1, 17).to(dtype)
    flips = [list(range(16)), *([first, second] for first in range(16) for second in range(first))]
    digests = {digest_of(weight)}
    for positions in flips:
        flipped = weight.clone()
        flipped[positions] *= -1
        digests.add(digest_of(flipped))
    assert len(digests) == 1 + len(flips)


def test_digest_depends_on_values_only_not_on_memory_layout() -> None:
    weight = torch.randn(37, 5)
    assert digest_of(weight) == digest_of(weight.t().contiguous().t())
    storage = torch.zeros(37 * 5 + 1)
    storage[1:] = weight.reshape(-1)  # starts at 4 bytes: no int64 view of it is possible
    assert digest_of(weight) == digest_of(storage[1:].view(37, 5))
    assert digest_of(torch.empty(0)) != digest_of(torch.zeros(1))


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "embedding": torch.randn(7, 3, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "scalar": torch.tensor(3.5),
        "transposed": torch.randn(4, 6, generator=generator).t(),
        "large": torch.randn(100, generator=generator),
        "counter": torch.tensor([1, 2, 3]),
    }


def test_all_receivers_get_the_tensors_bit_for_bit_and_compute_the_senders_digest(
    make_spec: Callable[..., WeightGroupSpec],
) -> None:
    spec = make_spec(world_size=3)
    tensors = some_tensors()
    manifest = describe_tensors(tensors, policy_version=4)
    assert manifest.num_bytes == 84 + 10 + 4 + 96 + 400 + 24

    def send() -> str:
        group = WeightGroup(spec, rank=0)
        broadcast_tensors(group, named_tensors=tensors, manifest=manifest, device=CPU)
        return manifest.digest

    def receive(rank: int) -> tuple[str, dict[str, torch.Tensor]]:
        group = WeightGroup(spec, rank=rank)
        received: dict[str, torch.Tensor] = {}
        return receive_tensors(group, manifest=manifest, device=CPU, load=received.update), received

    with ThreadPoolExecutor() as threads:
        sender = threads.submit(send)
        receivers = [threads.submit(receive, rank) for rank in (1, 2)]
        sender.result()
        for receiver in receivers:
            digest, received = receiver.result()
            assert digest == manifest.digest
            assert list(received) == list(tensors)
            for name, tensor in tensors.items():
                assert received[name].dtype == tensor.dtype
                assert torch.equal(received[name], tensor)


def test_weights_that_changed_after_the_manifest_arrive_with_another_digest(
    make_spec: Callable[..., WeightGroupSpec],
) -> None:
    spec = make_spec(world_size=2)
    tensors = some_tensors()
    manifest = describe_tensors(tensors, policy_version=4)
    tensors["large"][50] += 1e-3

    def send() -> None:
        broadcast_tensors(WeightGroup(spec, rank=0), named_tensors=tensors, manifest=manifest, device=CPU)

    with ThreadPoolExecutor() as threads:
        sender = threads.submit(send)
        group = WeightGroup(spec, rank=1)
        assert receive_tensors(group, manifest=manifest, device=CPU, load=dict) != manifest.digest
        sender.result()


def test_the_sender_names_the_receiver_that_did_not_join(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=4, timeout_seconds=1.0)

    def join(rank: int) -> WeightGroup:
        return WeightGroup(spec, rank=rank)

    start = time.monotonic()
    with ThreadPoolExecutor() as threads:
        groups = [threads.submit(join, rank) for rank in (0, 1, 3)]
        with pytest.raises(DeadlineError, match="weight receiver rank 2 did not finish 'join weight group test'"):
            groups[0].result()
        with pytest.raises(DeadlineError, match="it waits for all 4 ranks"):
            groups[1].result()
    assert time.monotonic() - start < 10


def test_a_receiver_names_the_sender_that_is_not_there(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=2, timeout_seconds=1.0)
    with pytest.raises(DeadlineError, match=rf"the weight sender at 127.0.0.1:{spec.port}"):
        WeightGroup(spec, rank=1)


def test_a_receiver_does_not_wait_for_ever_for_a_silent_sender(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=2, timeout_seconds=1.0)
    manifest = describe_tensors(some_tensors(), policy_version=7)
    with ThreadPoolExecutor() as threads:
        sender = threads.submit(WeightGroup, spec, rank=0)
        group = WeightGroup(spec, rank=1)
        silent = sender.result()
        with pytest.raises(DeadlineError, match=r"the weight sender .* 'send weights of policy version 7'"):
            receive_tensors(group, manifest=manifest, device=CPU, load=dict)
    silent.close()


def test_a_sender_whose_receiver_left_gets_an_error(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=2, timeout_seconds=2.0)
    tensors = {"large": torch.zeros(4_000_000)}  # more than the sockets buffer
    manifest = describe_tensors(tensors, policy_version=7)
    with ThreadPoolExecutor() as threads:
        sender = threads.submit(WeightGroup, spec, rank=0)
        WeightGroup(spec, rank=1).close()
        group = sender.result()
        with pytest.raises((WeightSyncError, DeadlineError), match="a receiver"):
            broadcast_tensors(group, named_tensors=tensors, manifest=manifest, device=CPU)


def test_tensors_that_are_not_those_of_the_manifest_are_not_sent(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=1)
    group = WeightGroup(spec, rank=0)
    tensors = {"a": torch.zeros(2), "b": torch.zeros(2)}
    manifest = describe_tensors(tensors, policy_version=1)
    with pytest.raises(ValueError, match="in its order"):
        broadcast_tensors(group, named_tensors={"b": tensors["b"], "a": tensors["a"]}, manifest=manifest, device=CPU)
    with pytest.raises(ValueError, match="b: manifest says float32"):
        broadcast_tensors(group, named_tensors=tensors | {"b": torch.zeros(3)}, manifest=manifest, device=CPU)
