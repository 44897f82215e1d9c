"""`credence status`: workers, queues and versions of a run that goes on, as a plain table or as JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from system.commands.scale import ADDRESS_HELP
from system.errors import CredenceError
from system.runtime.run_address import find_run
from system.runtime.run_status import PoolStatus, RunStatus

_HEADINGS = ("worker", "state", "version", "calls", "load", "node", "waits for")


def main(argv: Sequence[str]) -> int:
    """Print the newest status. Raises CredenceError when the run cannot be reached."""
    parser = argparse.ArgumentParser(
        prog="credence status",
        description="Workers by state, policy version, load and node, queues, and what the step waits for.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, or its name with --address or RAY_ADDRESS")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--address", metavar="HOST:PORT", help=ADDRESS_HELP)
    options = parser.parse_args(list(argv))

    found = find_run(options.run, address=options.address)
    found.prepare_ray()
    from system.runtime.run_mailbox import mailbox_at

    with mailbox_at(found) as ask:
        status: RunStatus | None = ask("status")
    if status is None:
        raise CredenceError(f"run {options.run} has only just begun; ask again in a second")
    print(json.dumps(asdict(status)) if options.json else status_text(status, now=time.time()))
    return 0


def status_text(status: RunStatus, *, now: float) -> str:
    """The status for a person; `now` in seconds since 1970."""
    lines = [
        f"{status.run}: update {status.policy_version} of {status.num_updates}, {status.phase}; controller is process "
        f"{status.pid} on {status.host}, {max(0.0, now - status.updated_at):.0f} s ago"
    ]
    if status.waits_for is not None:
        lines.append(f"waits for: {status.waits_for}")
    queue = status.queue
    if queue is not None:
        groups = ", ".join(f"{count} {state}" for state, count in queue.groups.items())
        behind = 0 if queue.oldest_lease_version is None else queue.published_version - queue.oldest_lease_version
        lines.append(f"groups: {groups}")
        lines.append(
            f"published version {queue.published_version}; the oldest group is {behind} behind, at most "
            f"{queue.max_staleness} when it is trained on"
        )
    for pool in status.pools:
        lines += ["", *_pool_lines(pool)]
    return "\n".join(lines)


def _pool_lines(pool: PoolStatus) -> Iterator[str]:
    text = f"{pool.section}: {pool.num_serving} of {pool.desired} {pool.kind}s serve"
    text += f"; {pool.num_calls_in_flight} calls in flight, {pool.num_calls_waiting} waiting"
    yield text + (f"; {pool.num_lost} lost, the last: {pool.last_loss}" if pool.last_loss else "")
    rows = [
        (
            worker.name,
            worker.state,
            "-" if worker.policy_version is None else str(worker.policy_version),
            str(worker.num_calls),
            str(worker.load),
            worker.node_address or "-",
            worker.waits_for or "",
        )
        for worker in pool.workers
    ]
    widths = [max(len(row[column]) for row in (_HEADINGS, *rows)) for column in range(len(_HEADINGS))]
    for row in (_HEADINGS, *rows):
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
