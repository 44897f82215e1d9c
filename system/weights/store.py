"""The buckets of snapshots in Ray's object store: zero-copy on a node, one transfer to each other node.

    learner rank 0   put(bucket) ─> reference, kept in the manifest
    receiver         fetch(references) ─> the buckets, read-only

An object lives as long as the process that put it: when the learner dies, its snapshots are lost with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, ObjectLostError, ReferenceCountingAssertionError

from system.errors import ConfigError, DeadlineError, SnapshotLostError

Bytes = NDArray[np.uint8]
Buckets = Iterator[Bytes]


def put(bucket: Bytes) -> object:
    """Copy a bucket into the store; the reference keeps it there."""
    return ray.put(bucket)


def fetch(references: Sequence[object], *, seconds: float) -> Buckets:
    """The buckets in their order, as read-only views of the node's shared memory.

    Raises SnapshotLostError when they died with the learner that put them, DeadlineError after `seconds` for one.
    """
    for reference in references:
        try:
            yield ray.get(reference, timeout=seconds)
        except (ObjectLostError, ReferenceCountingAssertionError) as error:
            raise SnapshotLostError(f"the snapshot is lost: {type(error).__name__}") from error
        except GetTimeoutError as error:
            raise DeadlineError("the object store", what="hand over a bucket of weights", seconds=seconds) from error


def node_address() -> str:
    """Under which the other nodes of the cluster reach this one."""
    return str(ray.util.get_node_ip_address())


def check_capacity(num_bytes: int, *, num_snapshots: int, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError when the object store of a node is smaller than `num_snapshots` snapshots of `num_bytes`.

    While a version is published the one before it may still be read, so that every node needs room for two.
    `nodes`: as ray.nodes() gives them.
    """
    needed = num_bytes * num_snapshots
    for node in nodes:
        capacity = node["Resources"].get("object_store_memory", 0.0)
        if node["Alive"] and capacity < needed:
            raise ConfigError(
                "cluster.address",
                given=f"node {node['NodeManagerAddress']} with {capacity / 2**30:.2f} GiB of object store",
                expected=f"{needed / 2**30:.2f} GiB: room for {num_snapshots} snapshots of the weights",
                fix=f"{(needed - capacity) / 2**30:.2f} GiB more: ray start --object-store-memory={needed} there",
            )
