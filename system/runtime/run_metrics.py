"""Where the run stands, in numbers: groups, workers, the last weight sync. Names: system/reports/metrics.py."""

from typing import get_args

from system.metrics import MetricSet
from system.runtime.group_buffer import GroupBuffer, GroupState
from system.runtime.pools import Pools
from system.runtime.weight_sync import SyncReport


def add_group_counts(metrics: MetricSet, buffer: GroupBuffer) -> None:
    """Groups since the start and by state; before the next step's are leased, the same in every synchronous run."""
    totals = buffer.totals()
    for name in ("leased", "generated", "scored", "trained", "regenerated", "dropped", "in_flight", "undone"):
        metrics.add(f"ledger/{name}", getattr(totals, name))
    for reason, count in totals.dropped_by_reason.items():
        metrics.add(f"ledger/dropped_{reason}", count)
    for state in get_args(GroupState):
        metrics.add(f"queue/{state}_groups", buffer.num_in_state(state))
    metrics.add("queue/outstanding_groups", buffer.num_outstanding)


def add_worker_counts(metrics: MetricSet, pools: Pools) -> None:
    """Workers that serve, and how many were lost."""
    for area, pool in (("rollout", pools.rollouts), ("reward", pools.rewards), ("scorer", pools.scoring)):
        if pool is not None:
            metrics.add(f"{area}/num_workers", pool.num_serving)
            metrics.add(f"{area}/num_restarts", pool.num_removed)


def add_sync(metrics: MetricSet, report: SyncReport, *, publish_seconds: float) -> None:
    """One weight sync."""
    metrics.add("weight_sync/seconds", report.seconds)
    metrics.add("weight_sync/publish_seconds", publish_seconds)
    metrics.add("weight_sync/pause_seconds", report.pause_seconds)
    metrics.add("weight_sync/bytes", report.num_bytes)
    metrics.add("weight_sync/num_receivers", report.num_receivers)
    metrics.add("weight_sync/num_from_store", report.num_from_store)
    if report.canary_max_abs_diff is not None:
        metrics.add("weight_sync/canary_max_abs_diff_nats", report.canary_max_abs_diff)
    if report.proved_fraction is not None:
        metrics.add("weight_sync/proved_fraction", report.proved_fraction)
