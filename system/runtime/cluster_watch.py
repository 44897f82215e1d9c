"""Whether Ray still stands: its control service (GCS) and the raylet of this node. Used by session.py.

Ray itself ends the driver 60 s after the GCS has died, with no word of how to go on. A local GCS that is gone is
noticed within about 3 s, that of a cluster after 20 s (it may be restarted), a raylet by the GCS's own health check.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping, Sequence

import ray
from ray.exceptions import RayError

from system.errors import ClusterLostError

_PROBE_SECONDS = 1.0
_NODES_SECONDS = 2.0
LOCAL_PATIENCE_SECONDS = 3.0
CLUSTER_PATIENCE_SECONDS = 20.0


async def watch_cluster(*, is_local: bool) -> None:
    """Until cancelled. Raises ClusterLostError."""
    context = ray.get_runtime_context()
    patience = LOCAL_PATIENCE_SECONDS if is_local else CLUSTER_PATIENCE_SECONDS
    lost_raylet: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    is_over = threading.Event()
    looking = threading.Thread(
        target=_look_for_raylet, args=(context.get_node_id(), lost_raylet, is_over), name="raylet watch", daemon=True
    )
    looking.start()
    gcs = asyncio.ensure_future(watch_address(context.gcs_address, patience_seconds=patience))
    try:
        await asyncio.wait((gcs, lost_raylet), return_when=asyncio.FIRST_COMPLETED)
        if gcs.done():
            gcs.result()
        raise ClusterLostError("the raylet of this node died")
    finally:
        is_over.set()
        gcs.cancel()
        looking.join(_PROBE_SECONDS)  # it must not ask Ray while that is shut down


async def watch_address(address: str, *, patience_seconds: float) -> None:
    """Until cancelled. Raises ClusterLostError when nobody has answered at HOST:PORT for so long."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    answered_at = loop.time()
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(patience_seconds):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
            answered_at = loop.time()
        silent = loop.time() - answered_at
        if silent >= patience_seconds:
            raise ClusterLostError(
                f"Ray's control service (gcs_server at {address}) has not answered for {silent:.0f} s"
            )
        await asyncio.sleep(_PROBE_SECONDS)


def is_dead(node_id: str, nodes: Sequence[Mapping[str, object]]) -> bool:
    """`nodes`: as ray.nodes() gives them."""
    return any(node["NodeID"] == node_id and not node["Alive"] for node in nodes)


def _look_for_raylet(node_id: str, lost: asyncio.Future[None], is_over: threading.Event) -> None:
    # a daemon thread: without a GCS, ray.nodes() waits for a minute, and asyncio waits for threads of its own
    loop = lost.get_loop()
    while not is_over.wait(_NODES_SECONDS) and ray.is_initialized():
        try:
            has_died = is_dead(node_id, ray.nodes())
        except RayError:
            return
        if has_died:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the run is over anyway
                loop.call_soon_threadsafe(_set, lost)
            return


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
