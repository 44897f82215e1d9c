"""The object store: capacity by hand; with Ray, what a receiver sees when the learner that put a snapshot dies."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError

from system.errors import ConfigError, SnapshotLostError
from system.weights import store
from tests.weights.memory_store import MemoryStore, some_tensors
from tests.weights.store_actors import Publisher, Receiver

GIB = 2**30


def node(address: str, *, gib: float, is_alive: bool = True) -> dict[str, object]:
    return {"NodeManagerAddress": address, "Alive": is_alive, "Resources": {"object_store_memory": gib * GIB}}


def test_every_node_needs_room_for_all_snapshots() -> None:
    nodes = [node("10.0.0.1", gib=8), node("10.0.0.2", gib=5.5), node("10.0.0.3", gib=1, is_alive=False)]
    store.check_capacity(int(2.7 * GIB), num_snapshots=2, nodes=nodes)
    with pytest.raises(ConfigError, match=r"node 10.0.0.2 with 5.50 GiB.*expected 6.00 GiB.*0.50 GiB more: ray start"):
        store.check_capacity(3 * GIB, num_snapshots=2, nodes=nodes)


@pytest.fixture
def session() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
    )
    yield
    ray.shutdown()


@pytest.mark.integration
def test_buckets_arrive_and_die_with_the_process_that_put_them(session: None) -> None:
    publisher, receiver = ray.remote(Publisher).remote(), ray.remote(Receiver).remote()
    manifest = ray.get(publisher.publish.remote())
    memory = MemoryStore()
    expected = memory.publish(some_tensors(), policy_version=1, bucket_bytes=100)
    arrived = ray.get(receiver.load.remote(manifest))
    assert arrived == [np.asarray(each).tobytes() for each in memory.fetch(expected.references)]
    ray.kill(publisher)
    with pytest.raises(RayActorError):  # killing does not wait for the end
        ray.get(publisher.publish.remote())
    # a receiver that has the buckets already may keep them: they are what was published
    newcomer = ray.remote(Receiver).remote()
    with pytest.raises(SnapshotLostError, match="the snapshot is lost"):
        ray.get(newcomer.load.remote(manifest))
