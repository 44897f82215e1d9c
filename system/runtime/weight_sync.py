"""The order of a weight sync, and the proof that it worked.

    gather (all ranks) ─> send (rank 0) ∥ receive (every receiver) ─> versions and digests ─> canary ─> SERVING

| phase   | waits for                        | named in the error |
|---------|----------------------------------|--------------------|
| join    | all receivers of a new group     | who did not join   |
| gather  | all learner ranks                | the rank           |
| send    | rank 0 and all receivers         | who did not answer |
| canary  | learner and receivers            | who disagrees      |

The process group is opened again whenever a receiver came or went. A receiver that dies on the way is taken
out and the rest is synced; one that holds other weights than were sent is refused and replaced.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from system.config.schema import WeightSyncConfig
from system.errors import LearnerDiedError, WeightSyncError
from system.records import FloatArray, ReceiverStatus, WeightGroupSpec, WeightsManifest
from system.runtime.deadlines import within
from system.runtime.learner_group import LearnerGroup
from system.runtime.worker_failures import WORKER_FAILURES, is_worker_failure
from system.runtime.worker_pool import PoolMember, WorkerPool, WorkerState

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    policy_version: int
    num_receivers: int
    num_bytes: int
    seconds: float
    canary_seconds: float
    canary_max_abs_diff: float  # nats, over receivers and canary tokens


def refusal(status: ReceiverStatus, manifest: WeightsManifest) -> str | None:
    """Why a receiver that reports `status` must not serve after `manifest` was sent; None when it may."""
    if status.policy_version != manifest.policy_version:
        return f"{status.receiver} holds policy version {status.policy_version}, not {manifest.policy_version}"
    if status.digest != manifest.digest:
        return f"{status.receiver} holds weights with digest {status.digest}, not {manifest.digest}"
    return None


def canary_difference(learner: FloatArray, receiver: FloatArray) -> float:
    """Largest absolute difference in nats; infinite when a value is not a number."""
    difference = np.abs(np.asarray(learner, np.float64) - np.asarray(receiver, np.float64)).max()
    return float(difference) if np.isfinite(difference) else float("inf")


class WeightSync:
    """Brings every member of every pool to the learner's newest weights: rollout workers and scoring replicas alike."""

    def __init__(
        self,
        *,
        learner_group: LearnerGroup,
        pools: Sequence[WorkerPool],
        config: WeightSyncConfig,
        canary_token_ids: Sequence[int],
    ) -> None:
        self._learner_group = learner_group
        self._pools = tuple(pools)
        self._config = config
        self._canary_token_ids = list(canary_token_ids)
        self._group_members: tuple[PoolMember, ...] = ()
        self._group_numbers = itertools.count()
        self._lock = asyncio.Lock()
        self.canary_max_abs_diff = 0.0  # over all syncs

    async def synchronise(self) -> SyncReport:
        """Send the learner's newest weights to all members and let them serve.

        A pool without members is passed over, but not the first: somebody has to receive.

        Raises WeightSyncError naming the receiver whose log-probabilities differ by more than
        weight_sync.canary_tolerance_nats although its digest is right, DeadlineError, LearnerDiedError.
        """
        async with self._lock:
            start = time.perf_counter()
            try:
                manifest, _ = await asyncio.gather(
                    self._learner_group.gather_weights(),
                    asyncio.gather(*(pool.hold() for pool in self._pools if pool.settings.is_exclusive)),
                )
                await self._transfer(manifest)
                transferred = time.perf_counter()
                difference = await self._check_canary(manifest)
                for member in self._holders():
                    member.pool.serve(member)
            finally:
                for pool in self._pools:
                    pool.release()
            return SyncReport(
                policy_version=manifest.policy_version,
                num_receivers=len(self._group_members),
                num_bytes=manifest.num_bytes,
                seconds=transferred - start,
                canary_seconds=time.perf_counter() - transferred,
                canary_max_abs_diff=difference,
            )

    async def _transfer(self, manifest: WeightsManifest) -> None:
        """Until at least one receiver holds the weights; whoever dies on the way is taken out."""
        is_done = False
        while not is_done:
            await self._pools[0].wait_for_members()
            members = tuple(member for pool in self._pools for member in pool.members)
            if members == self._group_members or await self._open_group(members):
                is_done = await self._broadcast(manifest, members)

    async def _open_group(self, members: tuple[PoolMember, ...]) -> bool:
        """Open a process group of rank 0 and `members`; False when one of them died meanwhile."""
        self._group_members = ()
        host, port = await self._learner_group.rendezvous()
        spec = WeightGroupSpec(
            group_name=f"weights-{next(self._group_numbers)}",
            host=host,
            port=port,
            world_size=1 + sum(member.num_ranks for member in members),
            backend=self._config.backend,
            timeout_seconds=self._config.timeout_seconds,
            bucket_bytes=self._config.bucket_mib * 2**20,
        )
        first_ranks = itertools.accumulate((member.num_ranks for member in members), initial=1)
        answers = await asyncio.gather(
            self._learner_group.open_weight_group(spec),
            *(
                self._ask(member, "join_weight_group", spec, first_rank)
                for member, first_rank in zip(members, first_ranks, strict=False)
            ),
            return_exceptions=True,
        )
        if not self._all_well(answers, members):
            return False
        self._group_members = members
        return True

    async def _broadcast(self, manifest: WeightsManifest, members: tuple[PoolMember, ...]) -> bool:
        """Send to `members` and refuse those that hold something else; False when it has to be done again."""
        answers: list[Any] = await asyncio.gather(
            self._learner_group.send_weights(manifest),
            *(self._ask(member, "receive_weights", manifest) for member in members),
            return_exceptions=True,
        )
        if not self._all_well(answers, members):
            self._group_members = ()
            return False
        for member, status in zip(members, answers[1:], strict=True):
            reason = refusal(status, manifest)
            if reason is not None:
                _log.warning("weight sync: %s; it is replaced", reason)
                member.pool.remove(member, reason=reason)
        return bool(self._holders())

    async def _check_canary(self, manifest: WeightsManifest) -> float:
        """The largest difference of the canary's log-probabilities between the learner and a holder, in nats."""
        members = self._holders()
        answers: list[Any] = await asyncio.gather(
            self._learner_group.canary_logprobs(self._canary_token_ids),
            *(self._ask(member, "canary_logprobs", self._canary_token_ids) for member in members),
            return_exceptions=True,
        )
        expected = answers.pop(0)
        if isinstance(expected, BaseException):
            raise expected
        self._all_well(answers, members)
        largest = 0.0
        for member, logprobs in zip(members, answers, strict=True):
            if member.state is WorkerState.GONE:
                continue
            difference = canary_difference(expected, logprobs)
            largest = max(largest, difference)
            if not difference <= self._config.canary_tolerance_nats:
                raise WeightSyncError(
                    f"{member.name} holds policy version {manifest.policy_version} with the right digest, but its "
                    f"log-probabilities differ from the learner's by {difference:.3g} nats (allowed: "
                    f"weight_sync.canary_tolerance_nats={self._config.canary_tolerance_nats:g}). Raise the tolerance "
                    "if the engine's precision explains it; otherwise the engine does not use the weights it received."
                )
        self.canary_max_abs_diff = max(self.canary_max_abs_diff, largest)
        return largest

    def _holders(self) -> list[PoolMember]:
        return [member for member in self._group_members if member.state is not WorkerState.GONE]

    def _all_well(self, answers: Sequence[Any], members: Sequence[PoolMember]) -> bool:
        """False when a member died; raises the first error that no dead member explains.

        When one end of a collective dies, the others fail too: those errors say nothing of their own.
        """
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in errors:
            if isinstance(error, LearnerDiedError):
                raise error
        if any(member.state is WorkerState.GONE for member in members):
            return False
        if errors:
            raise errors[0]
        return True

    async def _ask(self, member: PoolMember, method: str, *arguments: Any) -> Any:
        """The member's answer. One that died or does not answer in time is taken out of the pool."""
        # the receiver's own deadline fires first and says more; this one is for a receiver that is stuck
        seconds = 1.5 * self._config.timeout_seconds
        call = getattr(member.actor, method).remote(*arguments)
        try:
            return await within(call, who=member.name, what=method, seconds=seconds)
        except WORKER_FAILURES as error:
            if is_worker_failure(error):
                member.pool.remove(member, reason=str(error))
            raise
