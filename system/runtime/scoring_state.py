"""Scoring replicas against rollout engines, on the same tokens and weights. Called by batch_preparation.py."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from system.runtime.deadlines import within
from system.runtime.pool_member import PoolMember, WorkerState
from system.runtime.worker_failures import WORKER_FAILURES, is_worker_failure
from system.runtime.worker_pool import WorkerPool
from system.weights.canary import calibrated_tolerance, coarser_precision

_log = logging.getLogger(__name__)


class ReplicaComparison:
    """Warns when the difference leaves what it was at the first measurement: then one side computes with other weights.

    `precisions`: those of the engines and of the replicas; the coarser one bounds the tolerance from below.
    """

    def __init__(self, pool: WorkerPool, *, precisions: tuple[str, str]) -> None:
        self._pool = pool
        self._precision = coarser_precision(*precisions)
        self._tolerance: float | None = None

    async def measure(self) -> float | None:
        """Largest difference in nats since the last call; None when nothing could be compared."""
        serving = [member for member in self._pool.members if member.state is WorkerState.SERVING]
        answers = await asyncio.gather(
            *(_ask(member, member.actor.take_logprob_difference.remote(), what="compare") for member in serving)
        )
        difference = max((answer for answer in answers if answer is not None), default=None)
        if difference is None:
            return None
        if self._tolerance is None:
            self._tolerance = calibrated_tolerance(difference, precision=self._precision)
        elif not difference <= self._tolerance:
            _log.warning(
                "scoring replicas and rollout engines differ by %.3g nats on the same tokens, expected at most %.3g as "
                "calibrated at the first update: their scores may be of other weights than they say",
                difference,
                self._tolerance,
            )
        return difference


async def _ask(member: PoolMember, answer: Any, *, what: str) -> Any:
    """The answer; None from a replica that died or does not answer, which is taken out."""
    try:
        return await within(answer, who=member.name, what=what, seconds=member.pool.settings.start_seconds)
    except WORKER_FAILURES as error:
        if not is_worker_failure(error):
            raise
        member.pool.remove(member, reason=str(error))
        return None
