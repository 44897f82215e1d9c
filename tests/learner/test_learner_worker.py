"""When a learner publishes, once for each policy version; and what a rank writes of a checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from learner.scoring_snapshots import NewestSnapshot
from learner.worker import LearnerWorker, free_port
from system.config.schema import LearnerConfig, LossConfig
from system.records import FloatArray
from system.weights.manifest import WeightsManifest
from system.weights.store import Bytes
from tests.learner.learner_ranks import write_model
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


ARGUMENTS: dict[str, Any] = {
    "rank": 0,
    "num_ranks": 1,
    "config": LearnerConfig(learning_rate=1e-3),
    "loss": LossConfig(),
    "model_path": "unused",
    "revision": None,
    "trust_remote_code": False,
    "num_updates": 5,
    "optimizer_steps": 1,
    "temperature": 1.0,
}


def make_worker(publisher: CountingPublisher) -> Worker:
    worker = Worker(**ARGUMENTS)
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


class SavingWorker(Worker):
    """Its state is a counter, copied when it is captured; its snapshots are in `memory`."""

    memory: MemoryStore
    counter = 0

    def capture_checkpoint(self, directory: str) -> Callable[[], Sequence[Path]]:
        path, copied = Path(directory) / f"rank_{self._rank}", self.counter

        def write() -> Sequence[Path]:
            path.parent.mkdir(parents=True)
            path.write_text(str(copied))
            return [path]

        return write

    def _fetch(self, references: Sequence[object]) -> Iterator[Bytes]:
        return self.memory.fetch(references)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_writes_its_state_and_rank_0_the_published_policy_too(rank: int, tmp_path: Path) -> None:
    model = Path(write_model(tmp_path / "model", tied=True))
    memory = MemoryStore()
    worker = SavingWorker(**{**ARGUMENTS, "rank": rank, "num_ranks": 2})
    worker.memory, worker.counter = memory, 7
    worker._scoring, worker._buffers, worker._description_folder = NewestSnapshot(), {}, model
    worker._newest = (
        0,
        memory.publish(load_file(model / "model.safetensors"), policy_version=0) if rank == 0 else None,
    )
    folders = {part: str(tmp_path / "saved" / part) for part in ("learner", "policy", "scorer")}

    worker.start_checkpoint(**folders)
    worker.counter = 8
    written = worker.written_checkpoint()

    assert (tmp_path / "saved" / "learner" / f"rank_{rank}").read_text() == "7"
    files = {str(path) for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert files == set(written)
    exported = {Path(path).name for path in files if "/policy/" in path}
    assert exported == ({path.name for path in model.iterdir()} if rank == 0 else set())


def test_a_free_port_can_be_listened_on() -> None:
    import socket

    with socket.create_server(("127.0.0.1", free_port("127.0.0.1"))):
        pass
