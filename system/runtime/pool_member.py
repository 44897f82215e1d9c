"""One worker of a pool: its state, its settings, what it is doing. Used by worker_pool.py, which moves the states."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from system.runtime.placement import ActorHandle

if TYPE_CHECKING:
    from system.runtime.worker_pool import WorkerPool


class WorkerState(Enum):
    STARTING = "starting"
    JOINING = "joining"
    SERVING = "serving"
    DRAINING = "draining"
    GONE = "gone"


@dataclass(slots=True, kw_only=True, eq=False)
class PoolMember:
    """One worker of a pool. `num_ranks` weight-group ranks: its tensor-parallel processes."""

    name: str
    actor: ActorHandle
    pool: WorkerPool
    num_ranks: int = 1
    state: WorkerState = WorkerState.STARTING
    num_calls: int = 0
    load: int = 0
    is_reserved: bool = False  # its only call must not be joined by others
    died_in_call: bool = False
    died: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """What distinguishes one kind of worker from another; `kind` and `section` (of the configuration) name it."""

    kind: str
    section: str
    num_workers: int
    start_seconds: float
    call_seconds: float  # deadline of a call once a worker has it
    max_restarts: int
    receives_weights: bool = True  # without, a worker serves what it has loaded as soon as it has started
    ends_calls_first: bool = False  # a worker ends the calls that it has before it loads new weights
    is_exclusive: bool = False  # a worker answers one call at a time
    max_load: int | None = None  # that a worker holds at once, in the unit of the calls' load; None: any
    max_calls_at_once: int = 1  # more: the method takes a list of argument tuples and returns a list
    max_shared_attempts: int = 2  # a call that lost so many workers gets one for itself
