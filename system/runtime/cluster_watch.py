"""Whether Ray still stands: its control service (GCS) and the raylet of this node. Used by session.py.

Ray itself ends the driver 60 s after the GCS has died, with no word of how to go on. A local GCS that is gone is
noticed within about 3 s, that of a cluster after 20 s (it may be restarted), a raylet by the GCS's own health check.
Threads of their own look: without a GCS the event loop may wait in a call of Ray for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import ray
from ray.exceptions import RayError

from system.errors import ClusterLostError

_PROBE_SECONDS = 1.0
_NODES_SECONDS = 2.0
LOCAL_PATIENCE_SECONDS = 3.0
CLUSTER_PATIENCE_SECONDS = 20.0

Tell = Callable[[ClusterLostError], None]


async def watch_cluster(*, is_local: bool, on_loss: Tell) -> None:
    """Until cancelled. Raises ClusterLostError; `on_loss` hears of it first, in a thread, even if the loop is stuck."""
    context = ray.get_runtime_context()
    loop = asyncio.get_running_loop()
    lost: asyncio.Future[None] = loop.create_future()
    is_over = threading.Event()

    def tell(error: ClusterLostError) -> None:
        on_loss(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over anyway
            loop.call_soon_threadsafe(_fail, lost, error)

    patience = LOCAL_PATIENCE_SECONDS if is_local else CLUSTER_PATIENCE_SECONDS
    threads = [
        threading.Thread(target=look_for_service, args=(context.gcs_address, patience, is_over, tell), daemon=True),
        threading.Thread(target=_look_for_raylet, args=(context.get_node_id(), is_over, tell), daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        await lost
    finally:
        is_over.set()
        for thread in threads:
            thread.join(_PROBE_SECONDS)  # they must not ask Ray while that is shut down


def look_for_service(address: str, patience_seconds: float, is_over: threading.Event, tell: Tell) -> None:
    """Until `is_over`, or until nobody has answered at HOST:PORT for so long."""
    host, _, port = address.rpartition(":")
    answered_at = time.monotonic()
    while not is_over.wait(_PROBE_SECONDS):
        with contextlib.suppress(OSError):
            socket.create_connection((host.strip("[]"), int(port)), timeout=patience_seconds).close()
            answered_at = time.monotonic()
        silent = time.monotonic() - answered_at
        if silent >= patience_seconds:
            text = f"Ray's control service (gcs_server at {address}) has not answered for {silent:.0f} s"
            tell(ClusterLostError(text))
            return


def is_dead(node_id: str, nodes: Sequence[Mapping[str, object]]) -> bool:
    """`nodes`: as ray.nodes() gives them."""
    return any(node["NodeID"] == node_id and not node["Alive"] for node in nodes)


def _look_for_raylet(node_id: str, is_over: threading.Event, tell: Tell) -> None:
    while not is_over.wait(_NODES_SECONDS) and ray.is_initialized():
        try:
            has_died = is_dead(node_id, ray.nodes())
        except (RayError, RuntimeError, OSError):  # the control service is gone: the other thread tells
            return
        if has_died:
            tell(ClusterLostError("the raylet of this node died"))
            return


def _fail(future: asyncio.Future[None], error: ClusterLostError) -> None:
    if not future.done():
        future.set_exception(error)
