"""What scoring replicas measured besides their scores. Called by the controller."""

from __future__ import annotations

import asyncio
from typing import Any

from system.runtime.deadlines import within
from system.runtime.worker_failures import WORKER_FAILURES, is_worker_failure
from system.runtime.worker_pool import PoolMember, WorkerPool, WorkerState


async def logprob_difference(pool: WorkerPool) -> float | None:
    """Largest difference in nats between the replicas' and the engines' log-probabilities since the last call."""
    serving = [member for member in pool.members if member.state is WorkerState.SERVING]
    differences = await asyncio.gather(
        *(_ask(member, member.actor.take_logprob_difference.remote(), what="compare") for member in serving)
    )
    return max((difference for difference in differences if difference is not None), default=None)


async def _ask(member: PoolMember, answer: Any, *, what: str) -> Any:
    """The answer; None from a replica that died or does not answer, which is taken out."""
    try:
        return await within(answer, who=member.name, what=what, seconds=member.pool.settings.start_seconds)
    except WORKER_FAILURES as error:
        if not is_worker_failure(error):
            raise
        member.pool.remove(member, reason=str(error))
        return None
