"""How a run stands at one moment: its workers, queues and versions. `credence status` prints it.

Made by control_loop.py in the controller's process, and carried by the mailbox of run_control.py.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from system.runtime.group_buffer import GroupBuffer, GroupState

if TYPE_CHECKING:  # the mailbox needs the records alone
    from system.runtime.parts import Outcome
    from system.runtime.pool_member import PoolMember
    from system.runtime.worker_pool import WorkerPool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """`policy_version` None: it holds no published weights. `load` in the unit of its pool's calls."""

    name: str
    state: str
    policy_version: int | None
    num_calls: int
    load: int
    node_address: str | None
    node_id: str | None
    waits_for: str | None  # resources that no node has free


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatus:
    section: str
    kind: str
    desired: int
    num_serving: int
    num_lost: int  # towards max_restarts
    last_loss: str
    num_calls_waiting: int  # that no worker has
    num_calls_in_flight: int
    workers: tuple[WorkerStatus, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The moment at which a worker that received weights began to serve: what it held, and what was newest.

    The two are the same, but for a replica that lags or averages by configuration.
    """

    worker: str
    held_version: int
    published_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """Groups by state, and how far the oldest of them is behind; versions as the group buffer counts them."""

    groups: Mapping[str, int]
    published_version: int
    oldest_lease_version: int | None  # None: no group is in flight
    max_staleness: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    run: str
    host: str
    pid: int  # of the controller
    updated_at: float  # seconds since 1970
    phase: str
    policy_version: int
    num_updates: int
    waits_for: str | None  # what the newest update waited for
    queue: QueueStatus | None  # None: the workers are still starting
    pools: tuple[PoolStatus, ...]
    admissions: tuple[Admission, ...]


@dataclass(slots=True, kw_only=True)
class Progress:
    """What the status of a run is made of, once its workers have started."""

    outcome: Outcome
    buffer: GroupBuffer
    admissions: Sequence[Admission]


def make_status(
    run: str, *, pools: Mapping[str, WorkerPool], progress: Progress | None, num_updates: int, max_staleness: int
) -> RunStatus:
    """The status now; `progress` None: the workers are still starting."""
    outcome = progress.outcome if progress is not None else None
    return RunStatus(
        run=run,
        host=socket.gethostname(),
        pid=os.getpid(),
        updated_at=time.time(),
        phase=outcome.phase if outcome is not None else "start",
        policy_version=outcome.policy_version if outcome is not None else 0,
        num_updates=num_updates,
        waits_for=outcome.bottleneck if outcome is not None else None,
        queue=None if progress is None else _queue_status(progress, max_staleness=max_staleness),
        pools=tuple(_pool_status(section, pool) for section, pool in pools.items()),
        admissions=() if progress is None else tuple(progress.admissions),
    )


def _queue_status(progress: Progress, *, max_staleness: int) -> QueueStatus:
    buffer = progress.buffer
    return QueueStatus(
        groups={state: buffer.num_in_state(state) for state in get_args(GroupState)},
        published_version=buffer.published_version,
        oldest_lease_version=buffer.oldest_lease_version,
        max_staleness=max_staleness,
    )


def _pool_status(section: str, pool: WorkerPool) -> PoolStatus:
    return PoolStatus(
        section=section,
        kind=pool.settings.kind,
        desired=pool.desired,
        num_serving=pool.num_serving,
        num_lost=pool.num_removed,
        last_loss=pool.losses.last_reason,
        num_calls_waiting=pool.num_waiting,
        num_calls_in_flight=pool.num_calls_in_flight,
        workers=tuple(_worker_status(member) for member in pool.workers),
    )


def _worker_status(member: PoolMember) -> WorkerStatus:
    node = member.node
    return WorkerStatus(
        name=member.name,
        state=member.state.value,
        policy_version=member.policy_version,
        num_calls=member.num_calls,
        load=member.load,
        node_address=None if node is None else node.address,
        node_id=None if node is None else node.node_id,
        waits_for=member.waits_for,
    )
