"""The scoring replicas: full forward passes of the policy over finished groups. Called by group_scoring.py."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from system.records import AnswerHypotheses, CompletionGroup, ScoredGroup
from system.runtime.deadlines import within
from system.runtime.worker_pool import WORKER_FAILURES, PoolMember, WorkerDiedError, WorkerPool, WorkerState

_log = logging.getLogger(__name__)


class ScoringPool(WorkerPool):
    """Replicas of the policy with its model-based scorers; their number is independent of the rollout workers'.

    Two calls wait at each replica, so that it never idles and a weight sync never waits for more than that.
    """

    kind = "scoring replica"
    section = "scorer"
    max_calls_per_worker = 2
    is_exclusive = True

    async def score(self, group: CompletionGroup, *, hypotheses: AnswerHypotheses | None = None) -> ScoredGroup:
        """The group with the terms of the model-based scorers, and with beliefs where there are hypotheses.

        Raises DeadlineError.
        """
        what = f"score group {group.group_id}"
        scored: ScoredGroup = await self._call_until_done("score", group, hypotheses, what=what)
        return scored

    async def logprob_difference(self) -> float | None:
        """Largest difference in nats between the replicas' and the engines' log-probabilities since the last call."""
        differences = await asyncio.gather(
            *(self._ask_for_difference(member) for member in self.members if member.state is WorkerState.SERVING)
        )
        return max((difference for difference in differences if difference is not None), default=None)

    async def _ask_for_difference(self, member: PoolMember) -> float | None:
        call = member.actor.take_logprob_difference.remote()
        try:
            return await within(call, who=member.name, what="take_logprob_difference", seconds=self._group_seconds)
        except WORKER_FAILURES as error:
            self.remove(member, reason=str(error))
            return None

    async def save_state(self, directory: Path) -> None:
        """Write what cannot be had from the newest weights alone (average or past weights) into `directory`."""
        await self._call_until_done("save_state", str(directory), what="save the scorers' state")

    async def load_state(self, directory: Path) -> None:
        """Let every replica continue from a checkpoint."""
        for member in self.members:
            call = member.actor.load_state.remote(str(directory))
            await within(call, who=member.name, what="load_state", seconds=self._start_seconds)

    async def copy_state(self, member: PoolMember) -> None:
        """Give a new replica what the others have gathered (average or past weights), if there is another."""
        others = [other for other in self.members if other.state is WorkerState.SERVING and other is not member]
        if not others:
            _log.warning("%s starts without the past weights of the scorers: none is left to ask", member.name)
            return
        # the reference goes from actor to actor: the bytes never pass through this process
        state = others[0].actor.export_state.remote()
        await within(
            member.actor.import_state.remote(state), who=member.name, what="import_state", seconds=self._start_seconds
        )

    async def _call_until_done(self, method: str, *arguments: object, what: str) -> Any:
        """As `_call`; when the replica dies, another one is asked."""
        while True:
            try:
                return await self._call(method, *arguments, what=what)
            except WorkerDiedError as error:
                _log.warning("%s; another replica is asked", error)
