"""Which worker gets which snapshot when, and the proof that it holds it.

    update(manifest)   broadcast to the rollout workers that are there anyway ──breaks──> whoever is left: store
                       scoring replicas: store (they answer one call at a time, engines would wait for them paused)
    admit(member)      one new worker alone: load the newest from the store, again when it was overtaken ─> SERVING

| wait               | for                                  | bounded by                                   |
|--------------------|--------------------------------------|----------------------------------------------|
| join, broadcast    | rank 0 and all members of the group  | a death (it calls the others off),           |
|                    |                                      | weight_sync.timeout_seconds; then the store  |
| load               | one member                           | its own deadline, then it is replaced        |

Nothing here waits for one worker on account of another, but the broadcast; and no lock is held. A receiver that dies,
hangs or holds something else than was published is refused and replaced.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from system.config.schema import WeightSyncConfig
from system.errors import DeadlineError, SnapshotLostError, WeightSyncError
from system.runtime.deadlines import within
from system.runtime.learner_group import LearnerGroup
from system.runtime.pool_member import PoolMember, WorkerState
from system.runtime.worker_failures import WORKER_FAILURES, is_worker_failure
from system.runtime.worker_pool import WorkerPool
from system.weights.canary import CanaryTolerance, refusal
from system.weights.manifest import ReceiverStatus, WeightGroupSpec, WeightsManifest

_log = logging.getLogger(__name__)


Answer = Awaitable[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenGroup:
    """Who is in the process group of the broadcasts."""

    spec: WeightGroupSpec
    members: tuple[PoolMember, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    policy_version: int
    num_receivers: int
    num_from_store: int  # receivers that loaded from the store
    num_bytes: int
    seconds: float
    pause_seconds: float  # longest time that a rollout engine did not generate
    # over receivers and canary tokens, nats; None: nobody compared
    canary_max_abs_diff: float | None
    # smallest share of the bytes that were found again in what a receiver holds; None: nobody received any
    proved_fraction: float | None


class WeightSync:
    """Brings rollout workers and scoring replicas to the snapshots that the learner publishes."""

    def __init__(
        self,
        *,
        learner_group: LearnerGroup,
        rollouts: WorkerPool,
        scoring: WorkerPool | None,
        config: WeightSyncConfig,
    ) -> None:
        self._learner_group = learner_group
        self._rollouts = rollouts
        self._scoring = scoring
        self._config = config
        self._tolerance = CanaryTolerance(config.canary_tolerance_nats)
        self._newest: WeightsManifest | None = None
        self._published = asyncio.Event()  # replaced at each publication
        self._admitting: set[PoolMember] = set()
        self._group: _OpenGroup | None = None
        self._former_members: tuple[PoolMember, ...] = ()  # rollout workers of the last update
        self._group_numbers = itertools.count()
        self._secret = secrets.token_hex(32)

    async def update(self, manifest: WeightsManifest) -> SyncReport:
        """Bring all members to `manifest` and let them serve; returns without any, too.

        Raises WeightSyncError when, at the first load, all receivers of a kind compute something else than the
        learner; LearnerDiedError, SnapshotLostError.
        """
        start = time.perf_counter()
        self._newest = manifest
        self._published.set()
        self._published = asyncio.Event()
        rollouts, scoring = self._members(self._rollouts), self._members(self._scoring)
        updates = [self._update_rollouts(manifest, rollouts), self._load_all(scoring, manifest)]
        results = await asyncio.gather(*updates, return_exceptions=True)
        statuses: dict[PoolMember, ReceiverStatus] = {}
        for result in results:
            if isinstance(result, BaseException):
                raise result
            statuses |= result
        num_from_store = len(statuses) - (0 if self._group is None else len(self._group.members))
        self._settle(statuses, manifest)
        differences = [status.canary_max_abs_diff for status in statuses.values()]
        pauses = [statuses[member].pause_seconds for member in rollouts if member in statuses]
        return SyncReport(
            policy_version=manifest.policy_version,
            num_receivers=len(statuses),
            num_from_store=num_from_store,
            num_bytes=manifest.num_bytes,
            seconds=time.perf_counter() - start,
            pause_seconds=max(pauses, default=0.0),
            canary_max_abs_diff=max((each for each in differences if each is not None), default=None),
            proved_fraction=min((status.proved_fraction for status in statuses.values()), default=None),
        )

    async def admit(self, member: PoolMember) -> None:
        """Bring one new member to the newest snapshot and let it serve, or remove it from its pool.

        Touches neither the learner nor any other receiver. A snapshot that is lost is no fault of the member, which
        stays: raises LearnerDiedError when the learner took it along, SnapshotLostError when no other one comes.
        """
        self._admitting.add(member)
        deadline = asyncio.get_running_loop().time() + 3 * self._load_seconds(member)
        try:
            while member.state is WorkerState.JOINING:
                manifest = self._newest
                if manifest is None:
                    if not await self._next_publication(deadline):
                        member.pool.remove(member, reason="no weights were published while it waited")
                    continue
                try:
                    status = await self._load(member, manifest)
                except SnapshotLostError:
                    await self._learner_group.require_alive()  # between two steps nobody else would notice its death
                    if self._newest is manifest and not await self._next_publication(deadline):
                        raise
                    continue
                if status is not None and self._newest is manifest:
                    self._settle({member: status}, manifest)
                elif asyncio.get_running_loop().time() > deadline:
                    member.pool.remove(member, reason="new versions came faster than it could load them")
        finally:
            self._admitting.discard(member)

    def _members(self, pool: WorkerPool | None) -> tuple[PoolMember, ...]:
        """Those whom an update reaches: not those that are being admitted, which look for the newest themselves."""
        if pool is None or not pool.settings.receives_weights:
            return ()
        return tuple(member for member in pool.members if member not in self._admitting)

    async def _update_rollouts(
        self, manifest: WeightsManifest, members: tuple[PoolMember, ...]
    ) -> dict[PoolMember, ReceiverStatus]:
        """By broadcast where the same members were there before; a new set is not worth opening a group for yet.

        Members that end their calls first are ready at different times: each loads from the store.
        """
        statuses: dict[PoolMember, ReceiverStatus] = {}
        is_settled = bool(members) and members == self._former_members
        if self._config.transfer == "broadcast" and is_settled and not self._rollouts.settings.ends_calls_first:
            statuses = await self._broadcast(manifest, members)
        else:
            self._group = None
        self._former_members = members
        left = [member for member in members if member not in statuses and member.state is not WorkerState.GONE]
        return statuses | await self._load_all(left, manifest)

    async def _broadcast(
        self, manifest: WeightsManifest, members: tuple[PoolMember, ...]
    ) -> dict[PoolMember, ReceiverStatus]:
        """The status of those who received everything."""
        group = self._group
        if group is None or group.members != members:
            group = await self._open_group(members)
        self._group = None
        if group is None:
            return {}
        receives = [self._ask(member, "receive_broadcast", manifest) for member in members]
        answers = await self._together(group.spec, self._learner_group.broadcast(manifest), receives)
        if self._is_well(answers):
            self._group = group
        return {
            member: status
            for member, status in zip(members, answers[1:], strict=True)
            if isinstance(status, ReceiverStatus)
        }

    async def _open_group(self, members: tuple[PoolMember, ...]) -> _OpenGroup | None:
        """A process group of rank 0 and `members`; None when somebody did not come."""
        host, port = await self._learner_group.rendezvous()
        spec = WeightGroupSpec(
            group_name=f"weights-{next(self._group_numbers)}",
            host=host,
            port=port,
            world_size=1 + sum(member.num_ranks for member in members),
            backend=self._config.backend,
            timeout_seconds=self._config.timeout_seconds,
            secret=self._secret,
        )
        first_ranks = itertools.accumulate((member.num_ranks for member in members), initial=1)
        joins = [
            self._ask(member, "join_weight_group", spec, first_rank)
            for member, first_rank in zip(members, first_ranks, strict=False)
        ]
        answers = await self._together(spec, self._learner_group.open_weight_group(spec), joins)
        return _OpenGroup(spec=spec, members=members) if self._is_well(answers) else None

    async def _together(self, spec: WeightGroupSpec, send: Answer, receives: Sequence[Answer]) -> list[Any]:
        """The answers and errors of one collective, the sender's first. When one fails, the others stop waiting."""
        calls = [asyncio.ensure_future(call) for call in (send, *receives)]
        try:
            done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
            has_sender_left = calls[0] in done and calls[0].exception() is not None
            if waiting and not has_sender_left:
                reason = next(str(call.exception()) for call in done if call.exception() is not None)
                await self._learner_group.call_off(spec, reason=reason)
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            for call in calls:
                call.cancel()

    def _is_well(self, answers: Sequence[Any]) -> bool:
        """Whether a collective went well on all ends; what broke off is left to the store."""
        for answer in answers:
            if isinstance(answer, WeightSyncError | DeadlineError) or is_worker_failure(answer):
                _log.warning("the broadcast of weights broke off, the store takes over: %s", answer)
                return False
            if isinstance(answer, BaseException):
                raise answer
        return True

    async def _load_all(
        self, members: Sequence[PoolMember], manifest: WeightsManifest
    ) -> dict[PoolMember, ReceiverStatus]:
        """Each on its own, at the same time; without those that were lost."""
        answers: list[Any] = await asyncio.gather(
            *(self._load(member, manifest) for member in members), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return {member: status for member, status in zip(members, answers, strict=True) if status is not None}

    async def _load(self, member: PoolMember, manifest: WeightsManifest) -> ReceiverStatus | None:
        """From the store; None when the member was lost or refused. Raises SnapshotLostError."""
        wanted = self._snapshot_for(member, manifest)
        try:
            status: ReceiverStatus = await self._ask(member, "load_weights", wanted, self._config.timeout_seconds)
        except WeightSyncError as error:
            member.pool.remove(member, reason=str(error))
            return None
        except WORKER_FAILURES as error:
            if not is_worker_failure(error):
                raise
            return None  # removed where it was noticed
        return status

    def _settle(self, statuses: dict[PoolMember, ReceiverStatus], manifest: WeightsManifest) -> None:
        """Let those serve that hold what `manifest` says, compute with it, and are up to date; remove the others.

        Runs without a wait: nobody can publish between the last look at the newest snapshot and `serve`.
        """
        by_kind: dict[str, list[ReceiverStatus]] = {}
        for member, status in statuses.items():
            by_kind.setdefault(_kind(member), []).append(status)
        for kind, of_kind in by_kind.items():
            self._tolerance.calibrate(kind, of_kind, manifest=manifest)
        for member, status in statuses.items():
            if member.state is WorkerState.GONE:
                continue
            wanted = self._snapshot_for(member, manifest)
            reason = refusal(status, wanted) or self._tolerance.refusal(_kind(member), status)
            if reason is not None:
                member.pool.remove(member, reason=reason)
            elif self._newest is manifest:
                member.pool.serve(member)

    def _snapshot_for(self, member: PoolMember, manifest: WeightsManifest) -> WeightsManifest:
        is_scorer = member.pool is self._scoring
        return manifest.scoring if is_scorer and manifest.scoring is not None else manifest

    async def _next_publication(self, deadline: float) -> bool:
        """Wait for a newer snapshot; False when none came before `deadline`."""
        try:
            await asyncio.wait_for(self._published.wait(), max(deadline - asyncio.get_running_loop().time(), 0.0))
        except TimeoutError:
            return False
        return True

    def _load_seconds(self, member: PoolMember) -> float:
        # the receiver's own deadline fires first and says more; this one is for a receiver that is stuck
        seconds = 1.5 * self._config.timeout_seconds
        settings = member.pool.settings
        if settings.ends_calls_first:
            return seconds + settings.call_seconds
        # a replica that answers one call at a time has to finish those that it holds, and one may have come meanwhile
        return seconds + (1 + member.num_calls) * settings.call_seconds if settings.is_exclusive else seconds

    async def _ask(self, member: PoolMember, method: str, *arguments: Any) -> Any:
        """The member's answer. One that died or does not answer in time is taken out of its pool."""
        call = getattr(member.actor, method).remote(*arguments)
        try:
            return await within(call, who=member.name, what=method, seconds=self._load_seconds(member))
        except WORKER_FAILURES as error:
            if is_worker_failure(error):
                member.pool.remove(member, reason=str(error))
            raise


def _kind(member: PoolMember) -> str:
    return member.name.rsplit(" ", 1)[0]
