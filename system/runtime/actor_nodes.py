"""Which node an actor is on, and why one that has none waits. Asked by the pools while a worker starts.

Ray's public table of actors is served by its dashboard, which a run on a Ray of its own does not start. The same table
is therefore read where the dashboard reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import state

from system.runtime.placement import ActorHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster, or one of several raylets on it."""

    node_id: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """`node` None: it has no node yet; `reason` then says why, where that is known."""

    node: Node | None = None
    reason: str = ""


Locate = Callable[[ActorHandle, Mapping[str, float]], Awaitable[Location]]


async def locate(actor: ActorHandle, resources: Mapping[str, float]) -> Location:
    """Where Ray has put an actor that reserves `resources`, from the moment it has a process there."""
    return await asyncio.to_thread(_locate, actor, resources)


def _locate(actor: ActorHandle, resources: Mapping[str, float]) -> Location:
    record: dict[str, Any] = state.actors(actor._actor_id.hex()) or {}  # empty: Ray is still registering it
    address = record.get("Address", {})
    if address.get("IPAddress"):
        return Location(node=Node(node_id=address["NodeID"], address=address["IPAddress"]))
    if record.get("State") in (None, "DEAD"):
        return Location()
    if any(holds(free, resources) for free in state.available_resources_per_node().values()):
        return Location()  # its process is about to start
    totals = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    is_large_enough = any(holds(total, resources) for total in totals)
    return Location(reason="no node has it free" if is_large_enough else "no node of the cluster has so much")


def holds(available: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    """Whether a node with `available` can take an actor that reserves `wanted`."""
    return all(available.get(kind, 0.0) >= amount - 1e-6 for kind, amount in wanted.items())


def resources_text(resources: Mapping[str, float]) -> str:
    """`{CPU: 0.5, GPU: 1}`."""
    return "{" + ", ".join(f"{kind}: {amount:g}" for kind, amount in resources.items()) + "}"
