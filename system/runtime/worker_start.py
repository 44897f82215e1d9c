"""Starts one worker of a pool: waits for its node as long as that takes, and says so; then its deadline runs.

Used by worker_pool.py. A worker that the cluster has no room for is not late: Ray shows it as demand, so that an
autoscaler adds a node, and it starts there.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from system.runtime.actor_nodes import Locate, resources_text
from system.runtime.deadlines import within
from system.runtime.pool_member import PoolMember

_log = logging.getLogger(__name__)

NOTICE_SECONDS = 10.0  # until a wait for a node is spoken of: a process takes a moment to start where there is room
_MAX_PAUSE_SECONDS = 1.0  # between two looks


async def start_worker(member: PoolMember, *, locate: Locate | None) -> Any:
    """What the worker's `start` returns. Raises what it raises, DeadlineError when it is late on its node.

    `locate` None: nobody knows about nodes, and the deadline runs at once.
    """
    answer: asyncio.Future[Any] = asyncio.ensure_future(member.actor.start.remote())
    try:
        if locate is not None:
            await _wait_for_node(member, answer, locate=locate)
        return await within(answer, who=member.name, what="start", seconds=member.pool.settings.start_seconds)
    finally:
        member.waits_for = None
        answer.cancel()


async def _wait_for_node(member: PoolMember, answer: asyncio.Future[Any], *, locate: Locate) -> None:
    """Returns when the worker has a node, or has answered or died without."""
    loop = asyncio.get_running_loop()
    resources = member.pool.settings.resources
    start, pause = loop.time(), 0.1
    while True:
        is_over = answer.done()
        location = await locate(member.actor, resources)
        if location.node is not None or is_over:
            break
        if location.reason and loop.time() - start >= NOTICE_SECONDS:
            if member.waits_for is None:
                _log.warning("%s waits for %s: %s", member.name, resources_text(resources), location.reason)
            member.waits_for = f"{resources_text(resources)}: {location.reason}"
        await asyncio.wait((answer,), timeout=pause)
        pause = min(2 * pause, _MAX_PAUSE_SECONDS)
    if location.node is not None:
        member.node = location.node
        if member.waits_for is not None:
            _log.warning("%s has a node, %s, after %.0f s", member.name, location.node.address, loop.time() - start)
    member.waits_for = None
