"""Where Ray has put an actor, and why it has not: asked of a real Ray with one processor."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from system.runtime.actor_nodes import Location, holds, locate, resources_text
from system.runtime.run_control import RunControl


def test_resources_are_written_as_ray_names_them() -> None:
    assert resources_text({"CPU": 0.5, "GPU": 1}) == "{CPU: 0.5, GPU: 1}"


def test_a_node_holds_what_it_has_of_every_kind() -> None:
    assert holds({"CPU": 0.5, "GPU": 1.0, "memory": 1e9}, {"CPU": 0.5, "GPU": 1})
    assert not holds({"CPU": 0.4, "GPU": 1.0}, {"CPU": 0.5, "GPU": 1})
    assert not holds({"CPU": 8.0}, {"CPU": 0.5, "GPU": 1})


@pytest.fixture
def one_processor() -> Iterator[str]:
    """The id of its only node."""
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parents[2])}},
    )
    yield ray.get_runtime_context().get_node_id()
    ray.shutdown()


def until(is_met: Callable[[Location], bool], actor: object, resources: dict[str, float]) -> Location:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        location = asyncio.run(locate(actor, resources))
        if is_met(location):
            return location
        time.sleep(0.05)
    raise AssertionError(f"the last location: {location}")


def test_an_actor_has_a_node_or_a_reason_why_it_has_none(one_processor: str) -> None:
    make = ray.remote(RunControl)
    first = make.options(num_cpus=0.75).remote()
    placed = until(lambda location: location.node is not None, first, {"CPU": 0.75})
    assert placed.node is not None
    assert placed.node.node_id == one_processor
    second = make.options(num_cpus=0.75).remote()
    third = make.options(num_cpus=2).remote()
    waits = until(lambda location: bool(location.reason), second, {"CPU": 0.75})
    assert waits == Location(reason="no node has it free")
    waits = until(lambda location: bool(location.reason), third, {"CPU": 2})
    assert waits == Location(reason="no node of the cluster has so much")
    ray.kill(first)
    assert until(lambda location: location.node is not None, second, {"CPU": 0.75}).node == placed.node
    assert ray.get(second.status.remote(), timeout=60) is None
