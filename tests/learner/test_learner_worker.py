"""When a learner publishes: once for each policy version, and not again for a step that was skipped."""

import numpy as np
import torch

from learner.worker import LearnerWorker, free_port
from system.config.schema import LearnerConfig, LossConfig
from system.records import FloatArray
from system.weights.manifest import WeightsManifest
from tests.weights.memory_store import MemoryStore


class CountingPublisher:
    """Publishes the version that it is told."""

    def __init__(self) -> None:
        self.versions: list[int] = []

    def publish(
        self, *, policy_version: int, canary_token_ids: list[int], canary_logprobs: FloatArray
    ) -> WeightsManifest:
        self.versions.append(policy_version)
        return MemoryStore().publish({"w": torch.ones(1)}, policy_version=policy_version)


class Worker(LearnerWorker):
    def canary_logprobs(self, token_ids: object) -> FloatArray:
        return np.zeros(1, np.float32)


def make_worker(publisher: CountingPublisher) -> Worker:
    worker = Worker(
        rank=0,
        num_ranks=1,
        config=LearnerConfig(learning_rate=1e-3),
        loss=LossConfig(),
        model_path="unused",
        revision=None,
        trust_remote_code=False,
        num_updates=5,
        optimizer_steps=1,
        temperature=1.0,
    )
    worker._publisher = publisher  # type: ignore[assignment]
    worker._canary_token_ids = [1, 2]
    return worker


def test_a_version_is_published_once_and_the_next_one_anew() -> None:
    publisher = CountingPublisher()
    worker = make_worker(publisher)
    first = worker.publish()
    assert worker.publish() is first  # a step whose gradient was not finite leaves version and weights
    worker._policy_version = 1
    second = worker.publish()
    assert second is not None
    assert second.policy_version == 1
    assert publisher.versions == [0, 1]


def test_a_free_port_can_be_listened_on() -> None:
    import socket

    with socket.create_server(("127.0.0.1", free_port("127.0.0.1"))):
        pass
