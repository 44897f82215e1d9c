"""Broadcasts between threads over Gloo: what arrives, who is named when it does not, and who is let in."""

import contextlib
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from system.errors import DeadlineError, WeightSyncError
from system.weights.broadcast import WeightGroup, call_off, receive_buckets, send_buckets
from system.weights.digest import checked_buckets
from system.weights.manifest import WeightGroupSpec, WeightsManifest
from tests.weights.memory_store import MemoryStore, some_tensors

CPU = torch.device("cpu")


@pytest.fixture
def make_spec() -> Callable[..., WeightGroupSpec]:
    def make(*, world_size: int, timeout_seconds: float = 20.0) -> WeightGroupSpec:
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
            secret="of this run",
        )

    return make


def send(group: WeightGroup, store: MemoryStore, manifest: WeightsManifest) -> None:
    send_buckets(
        group, (torch.tensor(each) for each in store.fetch(manifest.references)), manifest=manifest, device=CPU
    )


def receive(group: WeightGroup, manifest: WeightsManifest) -> dict[str, torch.Tensor]:
    buckets = checked_buckets(receive_buckets(group, manifest, device=CPU), manifest)
    return dict(pair for pairs in buckets for pair in pairs)


def test_all_receivers_get_the_tensors_bit_for_bit(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec, store, tensors = make_spec(world_size=3), MemoryStore(), some_tensors()
    manifest = store.publish(tensors, policy_version=4, bucket_bytes=64)
    assert len(manifest.buckets) > 3
    with ThreadPoolExecutor() as threads:
        sender = threads.submit(lambda: send(WeightGroup(spec, rank=0), store, manifest))
        receivers = [threads.submit(lambda rank: receive(WeightGroup(spec, rank=rank), manifest), r) for r in (1, 2)]
        sender.result()
        for receiver in receivers:
            received = receiver.result()
            assert list(received) == list(tensors)
            for name, tensor in tensors.items():
                assert received[name].dtype == tensor.dtype
                assert torch.equal(received[name], tensor)


def test_other_weights_than_the_manifest_says_are_refused(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec, store, tensors = make_spec(world_size=2), MemoryStore(), some_tensors()
    manifest = store.publish(tensors, policy_version=4)
    tensors["large"][50] += 1e-3
    later = store.publish(tensors, policy_version=5)
    with ThreadPoolExecutor() as threads:
        sender = threads.submit(lambda: send(WeightGroup(spec, rank=0), store, later))
        with pytest.raises(WeightSyncError, match="large of policy version 4 arrived with other bytes"):
            receive(WeightGroup(spec, rank=1), manifest)
        sender.result()


def test_who_does_not_know_the_secret_is_not_let_in(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=2, timeout_seconds=1.0)
    with ThreadPoolExecutor() as threads:
        sender = threads.submit(WeightGroup, spec, rank=0)
        stranger = threads.submit(WeightGroup, replace(spec, secret="guessed"), rank=1)
        with pytest.raises((DeadlineError, WeightSyncError), match="it waits for all 2 ranks|has left"):
            stranger.result()
        with pytest.raises(DeadlineError, match="weight receiver rank 1"):
            sender.result()


def test_the_sender_listens_on_its_own_address_only(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=1)
    group = WeightGroup(spec, rank=0)
    with socket.create_connection(("127.0.0.1", spec.port), timeout=2):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", spec.port), timeout=2)
    group.close()


def test_the_sender_names_the_receiver_that_did_not_join(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=4, timeout_seconds=1.0)

    def join(rank: int) -> WeightGroup:
        return WeightGroup(spec, rank=rank)

    start = time.monotonic()
    with ThreadPoolExecutor() as threads:
        groups = [threads.submit(join, rank) for rank in (0, 1, 3)]
        with pytest.raises(DeadlineError, match="weight receiver rank 2 did not finish 'join weight group test'"):
            groups[0].result()
        with pytest.raises((DeadlineError, WeightSyncError), match="it waits for all 4 ranks|has left"):
            groups[1].result()
    assert time.monotonic() - start < 10


def test_whoever_waits_for_a_lost_receiver_ends_as_soon_as_the_group_is_called_off(
    make_spec: Callable[..., WeightGroupSpec],
) -> None:
    spec = make_spec(world_size=3, timeout_seconds=60.0)
    start = time.monotonic()
    with ThreadPoolExecutor() as threads:
        groups = [threads.submit(WeightGroup, spec, rank=rank) for rank in (0, 1)]
        time.sleep(0.3)
        assert not any(group.done() for group in groups)
        call_off(spec, reason="rollout worker 1 died")
        for group in groups:
            with pytest.raises(
                WeightSyncError, match="open weight group test: (called off: rollout worker 1 died|.* has left)"
            ):
                group.result()
    assert time.monotonic() - start < 20


def test_a_broadcast_in_which_a_receiver_is_silent_ends_as_soon_as_it_is_called_off(
    make_spec: Callable[..., WeightGroupSpec],
) -> None:
    spec, store = make_spec(world_size=3, timeout_seconds=60.0), MemoryStore()
    manifest = store.publish({"large": torch.zeros(4_000_000)}, policy_version=7)  # more than the sockets buffer
    start = time.monotonic()
    with ThreadPoolExecutor() as threads:
        opening = [threads.submit(lambda rank: WeightGroup(spec, rank=rank), rank) for rank in range(3)]
        sender, receiver, silent = (group.result() for group in opening)
        sending = threads.submit(send, sender, store, manifest)
        receiving = threads.submit(receive, receiver, manifest)  # may get all of it, in whatever order Gloo relays
        time.sleep(0.3)
        assert not sending.done()
        call_off(spec, reason="rollout worker 1 hangs")
        with pytest.raises(WeightSyncError, match="called off: rollout worker 1 hangs"):
            sending.result()
        with contextlib.suppress(WeightSyncError):
            receiving.result()
    silent.close()
    assert time.monotonic() - start < 20


def test_calling_off_a_group_whose_sender_is_gone_does_nothing(make_spec: Callable[..., WeightGroupSpec]) -> None:
    call_off(make_spec(world_size=2, timeout_seconds=1.0), reason="too late")


def test_a_receiver_names_the_sender_that_is_not_there(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=2, timeout_seconds=1.0)
    with pytest.raises(DeadlineError, match=rf"the weight sender at 127.0.0.1:{spec.port}"):
        WeightGroup(spec, rank=1)


def test_a_receiver_does_not_wait_for_ever_for_a_silent_sender(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=2, timeout_seconds=1.0)
    manifest = MemoryStore().publish(some_tensors(), policy_version=7)
    with ThreadPoolExecutor() as threads:
        sender = threads.submit(WeightGroup, spec, rank=0)
        group = WeightGroup(spec, rank=1)
        silent = sender.result()
        with pytest.raises(DeadlineError, match=r"the weight sender .* 'send weights of policy version 7'"):
            receive(group, manifest)
    silent.close()


def test_a_sender_whose_receiver_left_gets_an_error(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=2, timeout_seconds=2.0)
    store = MemoryStore()
    manifest = store.publish({"large": torch.zeros(4_000_000)}, policy_version=7)  # more than the sockets buffer
    with ThreadPoolExecutor() as threads:
        sender = threads.submit(WeightGroup, spec, rank=0)
        WeightGroup(spec, rank=1).close()
        group = sender.result()
        with pytest.raises((WeightSyncError, DeadlineError), match="a receiver"):
            send(group, store, manifest)


def test_a_port_that_is_taken_is_named(make_spec: Callable[..., WeightGroupSpec]) -> None:
    spec = make_spec(world_size=2)
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", spec.port))
        occupant.listen()
        with pytest.raises(WeightSyncError, match=f"cannot listen on 127.0.0.1:{spec.port}"):
            WeightGroup(spec, rank=0)
