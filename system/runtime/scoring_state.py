"""What scoring replicas hold besides the newest weights (average or past ones), and what they measured.

Called by the controller and `credence train`.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from system.runtime.deadlines import within
from system.runtime.worker_failures import WORKER_FAILURES, is_worker_failure
from system.runtime.worker_pool import PoolMember, WorkerPool, WorkerState

_log = logging.getLogger(__name__)


async def logprob_difference(pool: WorkerPool) -> float | None:
    """Largest difference in nats between the replicas' and the engines' log-probabilities since the last call."""
    serving = [member for member in pool.members if member.state is WorkerState.SERVING]
    differences = await asyncio.gather(
        *(_ask(member, member.actor.take_logprob_difference.remote(), what="compare") for member in serving)
    )
    return max((difference for difference in differences if difference is not None), default=None)


async def save_state(pool: WorkerPool, directory: Path) -> None:
    """Write what cannot be had from the newest weights alone into `directory`."""
    await pool.call("save_state", str(directory), what="save the scorers' state")


async def load_state(pool: WorkerPool, directory: Path) -> None:
    """Let every replica continue from a checkpoint; one that dies meanwhile is taken out."""
    await asyncio.gather(
        *(_ask(member, member.actor.load_state.remote(str(directory)), what="load_state") for member in pool.members)
    )


async def copy_state(member: PoolMember) -> None:
    """Give a new replica what the others have gathered, if there is another."""
    others = [other for other in member.pool.members if other.state is WorkerState.SERVING and other is not member]
    if not others:
        _log.warning("%s starts without the past weights of the scorers: none is left to ask", member.name)
        return
    # the reference goes from actor to actor: the bytes never pass through this process
    state = others[0].actor.export_state.remote()
    await _ask(member, member.actor.import_state.remote(state), what="import_state")


async def _ask(member: PoolMember, answer: Any, *, what: str) -> Any:
    """The answer; None from a replica that died or does not answer, which is taken out."""
    try:
        return await within(answer, who=member.name, what=what, seconds=member.pool.settings.start_seconds)
    except WORKER_FAILURES as error:
        if not is_worker_failure(error):
            raise
        member.pool.remove(member, reason=str(error))
        return None
