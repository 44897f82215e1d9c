"""The sender's life: describe, open, send, open again, close."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from learner.weight_sender import WeightSender
from system.errors import WeightSyncError
from system.records import WeightGroupSpec, WeightsManifest
from system.weights.broadcast import WeightGroup, receive_tensors

CPU = torch.device("cpu")


def spec_of(group_name: str) -> WeightGroupSpec:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return WeightGroupSpec(
        group_name=group_name,
        host="127.0.0.1",
        port=port,
        world_size=2,
        backend="gloo",
        timeout_seconds=20.0,
        bucket_bytes=1 << 10,
    )


def receive_once(spec: WeightGroupSpec, manifest: WeightsManifest) -> tuple[str, dict[str, torch.Tensor]]:
    received: dict[str, torch.Tensor] = {}
    digest = receive_tensors(WeightGroup(spec, rank=1), manifest=manifest, device=CPU, load=received.update)
    return digest, received


def test_the_manifest_lists_what_will_be_sent() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}
    manifest = WeightSender(device=CPU).describe(tensors, policy_version=5)
    assert (manifest.policy_version, manifest.names) == (5, ("a", "b"))
    assert (manifest.shapes, manifest.dtypes, manifest.num_bytes) == (((2, 3), (4,)), ("float32", "bfloat16"), 32)
    tensors["a"][0, 0] = 1
    assert WeightSender(device=CPU).describe(tensors, policy_version=5).digest != manifest.digest


def test_sending_without_a_group_is_an_error() -> None:
    sender = WeightSender(device=CPU)
    tensors = {"a": torch.zeros(1)}
    with pytest.raises(WeightSyncError, match="no open weight group"):
        sender.send(tensors, sender.describe(tensors, policy_version=0))


def test_a_second_group_replaces_the_first_and_parameters_that_need_gradients_are_sent() -> None:
    sender = WeightSender(device=CPU)
    parameter = torch.nn.Parameter(torch.arange(600.0))
    with ThreadPoolExecutor() as threads:
        for policy_version, group_name in enumerate(("first", "second")):
            spec = spec_of(group_name)
            manifest = sender.describe({"weight": parameter}, policy_version=policy_version)
            receiver = threads.submit(receive_once, spec, manifest)
            sender.open(spec)
            sender.send({"weight": parameter}, manifest)
            digest, received = receiver.result()
            assert digest == manifest.digest
            assert torch.equal(received["weight"], parameter.detach())
            with torch.no_grad():
                parameter.mul_(2)
    sender.close()
    sender.close()  # harmless


def test_a_port_that_is_taken_is_named() -> None:
    spec = spec_of("taken")
    with socket.socket() as occupant:
        occupant.bind(("", spec.port))
        occupant.listen()
        with pytest.raises(WeightSyncError, match=f"cannot listen on 127.0.0.1:{spec.port}"):
            WeightSender(device=CPU).open(spec)
