"""What the findings mean: for each thing that was looked at `ok`, `warn` or `FAIL`, with what to do. Pure functions.

Called by system/commands/doctor.py. A check tells what is wrong node by node, and what is right in one line.
"""

from __future__ import annotations

from collections.abc import Sequence

from system.runtime.doctor.facts import Clock, Findings, GpuProcess, Link, Needs, NodeFacts, RoundTrip, SharedFolder
from system.runtime.doctor.tested_versions import pinned_versions
from system.runtime.doctor.verdicts import Check, bad_or, fail, gib, ok, skip, warn
from system.runtime.doctor.version_checks import TestedVersions, check_same_versions, check_versions

_GIB = 2**30
_MIN_SHARED_MEMORY = 256 * 2**20  # a container has 64 MiB unless it is told otherwise
_MIN_OPEN_FILES, _GOOD_OPEN_FILES = 4_096, 65_536
_MIN_FREE_PROCESSES, _GOOD_FREE_PROCESSES = 512, 2_048  # a small run on one node has several hundred threads
_MAX_SKEW_SECONDS, _BAD_SKEW_SECONDS = 1.0, 60.0
_MIN_FREE_DISK = 10 * _GIB


def judge(findings: Findings, needs: Needs, *, tested: TestedVersions = pinned_versions) -> list[Check]:
    """All checks in the order of the table."""
    nodes = findings.nodes
    return [
        *check_answers(findings),
        *check_versions(nodes, tested=tested),
        *check_same_versions(nodes),
        *check_shared_memory(nodes, needs),
        *check_open_files(nodes),
        *check_processes(nodes),
        *check_ports(findings.links),
        *check_round_trip(findings.round_trip),
        *check_gpus(nodes),
        *check_shared_folder(findings.shared_folder, num_nodes=len(nodes)),
        *check_disk(nodes, needs),
        *check_clocks(findings.clocks),
    ]


def check_answers(findings: Findings) -> list[Check]:
    checks = [
        fail(
            "nodes",
            f"{address}: {error}",
            expected="an answer of an actor there",
            fix="look at its raylet.err; the same Python and Ray on all nodes",
        )
        for address, error in findings.silent
    ]
    return bad_or(checks, else_ok=ok("nodes", f"{len(findings.nodes)}: {findings.where}"))


def check_shared_memory(nodes: Sequence[NodeFacts], needs: Needs) -> list[Check]:
    """Room for the snapshots of the weights that a node may hold at once."""
    name, checks = "shared memory", []
    needed = None if needs.snapshot_bytes is None else needs.snapshot_bytes * needs.num_snapshots
    for node in nodes:
        total, free, store = node.shared_memory_bytes, node.shared_memory_free_bytes, node.object_store_bytes
        here = f"{node.address}: /dev/shm of {gib(total)}, {gib(free)} free"
        if total < _MIN_SHARED_MEMORY:
            checks.append(fail(name, here, expected=f"{gib(_MIN_SHARED_MEMORY)}", fix="docker run --shm-size=16g"))
        elif needed is not None and store is not None and store < needed:
            checks.append(
                fail(
                    name,
                    f"{node.address}: object store of {gib(store)}",
                    expected=f"{gib(needed)} for {needs.num_snapshots} snapshots of the weights",
                    fix=f"ray start --object-store-memory={needed}",
                )
            )
        elif needed is not None and (total if store is not None else free) < needed:
            expected = f"{gib(needed)} for {needs.num_snapshots} snapshots of the weights"
            checks.append(fail(name, here, expected=expected, fix="a larger /dev/shm (docker run --shm-size=...)"))
        elif store is not None and store > total:
            expected = f"at least the object store of {gib(store)}"
            checks.append(warn(name, here, expected=expected, fix="a larger /dev/shm: Ray uses slower files in /tmp"))
    smallest = min((node.shared_memory_free_bytes for node in nodes), default=0)
    enough = f"; {needs.num_snapshots} snapshots take {gib(needed)}" if needed is not None else ""
    unknown = f" ({needs.unknown_because})" if needed is None and needs.unknown_because else ""
    return bad_or(checks, else_ok=ok(name, f"at least {gib(smallest)} free{enough}{unknown}"))


def check_open_files(nodes: Sequence[NodeFacts]) -> list[Check]:
    name, checks = "open files", []
    fix = "ulimit -Hn 65536 before 'ray start' (LimitNOFILE= of a service, --ulimit of a container)"
    for node in nodes:
        found = f"{node.address}: at most {node.max_open_files:,}"
        if 0 <= node.max_open_files < _MIN_OPEN_FILES:
            checks.append(fail(name, found, expected=f"at least {_MIN_OPEN_FILES:,}", fix=fix))
        elif 0 <= node.max_open_files < _GOOD_OPEN_FILES:
            checks.append(warn(name, found, expected=f"{_GOOD_OPEN_FILES:,} or more", fix=fix))
    return bad_or(checks, else_ok=ok(name, f"at least {_least([node.max_open_files for node in nodes])}"))


def check_processes(nodes: Sequence[NodeFacts]) -> list[Check]:
    """Threads count as processes for the kernel's limits."""
    name, checks = "processes", []
    fix = "a larger ulimit -u, or pids limit of the container (docker run --pids-limit=-1)"
    for node in nodes:
        free = node.max_processes - node.num_processes
        found = f"{node.address}: {node.num_processes:,} threads run, at most {node.max_processes:,} may"
        if node.max_processes >= 0 and free < _MIN_FREE_PROCESSES:
            checks.append(fail(name, found, expected=f"room for {_MIN_FREE_PROCESSES:,} more", fix=fix))
        elif node.max_processes >= 0 and free < _GOOD_FREE_PROCESSES:
            checks.append(warn(name, found, expected=f"room for {_GOOD_FREE_PROCESSES:,} more", fix=fix))
    return bad_or(checks, else_ok=ok(name, f"at least {_least([node.max_processes for node in nodes])}"))


def check_ports(links: Sequence[Link]) -> list[Check]:
    checks = [
        fail(
            "ports",
            f"from {link.source} to {link.target}: {link.error}",
            expected="a TCP connection to a free port",
            fix="open the ports between the nodes: ranks and weight groups meet at free ones",
        )
        for link in links
        if link.error is not None
    ]
    return bad_or(checks, else_ok=ok("ports", f"{len(links)} connections between the nodes work"))


def check_round_trip(trip: RoundTrip) -> list[Check]:
    if trip.num_ranks == 0:
        return [skip("collective", "no node answers")]
    checks = [
        fail(
            "collective",
            f"{address}: {error}",
            expected=f"an all_reduce over {trip.num_ranks} Gloo ranks",
            fix="GLOO_SOCKET_IFNAME of the interface between the nodes; the host's name must not stand for 127.0.0.1",
        )
        for address, error in trip.errors
    ]
    found = f"all_reduce over {trip.num_ranks} Gloo ranks, {trip.seconds:.1f} s with the start of torch"
    return bad_or(checks, else_ok=ok("collective", found))


def check_gpus(nodes: Sequence[NodeFacts]) -> list[Check]:
    """Memory that a process holds which has ended, or that lost its parent: it is there for nobody."""
    name = "GPU memory"
    reasons = [node.gpu_processes for node in nodes if isinstance(node.gpu_processes, str)]
    if len(reasons) == len(nodes):
        return [skip(name, reasons[0] if reasons else "no node answers")]
    checks, num_processes = [], 0
    for node in nodes:
        if isinstance(node.gpu_processes, str):
            continue
        num_processes += len(node.gpu_processes)
        are_strange = node.is_container and not any(process.is_running for process in node.gpu_processes)
        for process in node.gpu_processes:
            checks += _of_gpu_process(node, process, is_strange=are_strange)
    return bad_or(checks, else_ok=ok(name, f"{num_processes} processes hold some, all of them run"))


def _of_gpu_process(node: NodeFacts, process: GpuProcess, *, is_strange: bool) -> list[Check]:
    """`is_strange`: none of the driver's process numbers is one of ours: it counts in another name space."""
    name, where = "GPU memory", f"{node.address}, {process.gpu}: {process.used_mib:,} MiB by process {process.pid}"
    expected = "no memory held by what no longer works"
    if is_strange:
        fix = "look for it on the host: the container does not see it"
        return [warn(name, f"{where}, which is not seen in this container", expected=expected, fix=fix)]
    if not process.is_running:
        fix = "end its children (fuser -v /dev/nvidia*), or reset the GPU"
        return [fail(name, f"{where}, which has ended", expected=expected, fix=fix)]
    if process.parent == 1 and process.title.startswith(("ray::", "VLLM::")):
        return [fail(name, f"{where} ({process.title}) without a parent", expected=expected, fix=f"kill {process.pid}")]
    return []


def check_shared_folder(shared: SharedFolder | None, *, num_nodes: int) -> list[Check]:
    name = "run folder"
    if shared is None:
        return [skip(name, "no RUN_DIR and no CONFIG was given")]
    if shared.error is not None:
        return [fail(name, shared.error, expected=f"a file in {shared.folder}", fix="another run.directory, or rights")]
    checks = [
        fail(
            name,
            f"{address} does not see what is written into {shared.folder}",
            expected="a folder that all nodes share",
            fix="run.directory on a file system that is mounted on all nodes",
        )
        for address in shared.blind
    ]
    seen = "can be written" if num_nodes == 1 else f"is shared by {num_nodes} nodes"
    return bad_or(checks, else_ok=ok(name, f"{shared.folder} {seen}"))


def check_disk(nodes: Sequence[NodeFacts], needs: Needs) -> list[Check]:
    """Room for the checkpoints that are kept, and the one that is written beside them."""
    name = "disk"
    known = [node for node in nodes if node.disk_free_bytes is not None]
    if not known or needs.folder is None:
        return [skip(name, "no RUN_DIR and no CONFIG was given")]
    free = min(node.disk_free_bytes or 0 for node in known)
    found = f"{gib(free)} free for {needs.folder}"
    if needs.checkpoint_bytes is None:
        because = f" ({needs.unknown_because})" if needs.unknown_because else ""
        if free >= _MIN_FREE_DISK:
            return [ok(name, found + because)]
        return [warn(name, found, expected=f"{gib(_MIN_FREE_DISK)} or more", fix="another run.directory")]
    needed = needs.checkpoint_bytes * needs.num_checkpoints
    expected = f"{gib(needed)} for {needs.num_checkpoints} checkpoints of {gib(needs.checkpoint_bytes)}"
    if free < needed:
        return [fail(name, found, expected=expected, fix="another run.directory, or a smaller checkpoint.keep")]
    return [ok(name, f"{found}; {expected}")]


def check_clocks(clocks: Sequence[Clock]) -> list[Check]:
    """Each against this machine's; what the reading itself took is not held against it."""
    name, checks = "clocks", []
    if not clocks:
        return [skip(name, "no node answers")]
    for clock in clocks:
        off = max(0.0, abs(clock.ahead_seconds) - clock.uncertainty_seconds)
        found = f"{clock.address}: {clock.ahead_seconds:+.2f} s against this machine"
        kind = fail if off > _BAD_SKEW_SECONDS else warn
        if off > _MAX_SKEW_SECONDS:
            checks.append(kind(name, found, expected=f"within {_MAX_SKEW_SECONDS:g} s", fix="run chrony or ntpd there"))
    most = max(abs(clock.ahead_seconds) for clock in clocks)
    return bad_or(checks, else_ok=ok(name, f"at most {most:.3f} s apart"))


def _least(limits: Sequence[int]) -> str:
    bounded = [limit for limit in limits if limit >= 0]
    return f"{min(bounded):,}" if bounded else "as many as there is memory for"
