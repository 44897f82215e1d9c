"""Each check of the doctor on literal facts: what is well passes, and what is broken is named with its fix."""

from typing import Any

import pytest

from system.runtime.doctor.checks import (
    check_answers,
    check_clocks,
    check_disk,
    check_gpus,
    check_open_files,
    check_ports,
    check_processes,
    check_round_trip,
    check_shared_folder,
    check_shared_memory,
    judge,
)
from system.runtime.doctor.facts import Clock, GpuProcess, Link, Needs, RoundTrip, SharedFolder
from system.runtime.doctor.verdicts import Check
from tests.runtime.doctor.healthy import GIB, NEEDS, PINS, findings, node

UNKNOWN = Needs(
    folder=None, snapshot_bytes=None, num_snapshots=2, checkpoint_bytes=None, num_checkpoints=1, unknown_because="why"
)


def statuses(checks: list[Check]) -> list[str]:
    return [check.status for check in checks]


def only(checks: list[Check]) -> Check:
    (check,) = checks
    return check


def test_a_healthy_cluster_has_nothing_to_complain_of() -> None:
    healthy = findings(
        links=(Link(source="10.0.0.1", target="10.0.0.2", error=None),),
        clocks=(Clock(address="10.0.0.2", ahead_seconds=0.01, uncertainty_seconds=0.01),),
    )
    checks = judge(healthy, NEEDS, tested=lambda build: dict(PINS, rich="15.0.0") if build == "cpu" else None)
    wrong = [check for check in checks if check.status not in ("ok", "skip")]
    # the four pins of this test are not all that a run needs, and they are all here
    assert wrong == []
    assert [check.name for check in checks] == [
        "nodes", "versions", "same versions", "shared memory", "open files", "processes", "ports", "collective",
        "GPU memory", "run folder", "disk", "clocks",
    ]  # fmt: skip


def test_a_node_that_does_not_answer_fails() -> None:
    check = only(check_answers(findings(silent=(("10.0.0.3", "no answer within 60 s"),))))
    assert (check.status, check.found) == ("FAIL", "10.0.0.3: no answer within 60 s")


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({}, "ok", "at least 60.00 GiB free; 2 snapshots take 6.00 GiB"),
        ({"shared_memory_bytes": 64 * 2**20}, "FAIL", "/dev/shm of 0.06 GiB"),
        ({"object_store_bytes": 5 * GIB}, "FAIL", "object store of 5.00 GiB"),
        ({"object_store_bytes": None, "shared_memory_free_bytes": 5 * GIB}, "FAIL", "5.00 GiB free"),
        ({"object_store_bytes": 100 * GIB}, "warn", "/dev/shm of 64.00 GiB"),
    ],
)
def test_shared_memory_holds_the_snapshots(changes: dict[str, Any], status: str, says: str) -> None:
    check = only(check_shared_memory([node(), node("10.0.0.2", **changes)], NEEDS))
    assert check.status == status
    assert says in check.found
    if status == "FAIL":
        assert check.found.startswith("10.0.0.2: ")
        assert check.expected.startswith("6.00 GiB for 2 snapshots" if "GiB" in says and "0.06" not in says else "0.25")


def test_shared_memory_without_a_configuration_says_why_nothing_is_compared() -> None:
    assert only(check_shared_memory([node(object_store_bytes=1)], UNKNOWN)).found.endswith("(why)")


@pytest.mark.parametrize(
    ("limit", "status"),
    [(-1, "ok"), (65_536, "ok"), (65_535, "warn"), (4_096, "warn"), (4_095, "FAIL"), (1_024, "FAIL")],
)
def test_open_files(limit: int, status: str) -> None:
    check = only(check_open_files([node(), node("10.0.0.2", max_open_files=limit)]))
    assert check.status == status
    assert status == "ok" or check.found == f"10.0.0.2: at most {limit:,}"


@pytest.mark.parametrize(
    ("limit", "running", "status"),
    [(-1, 10**6, "ok"), (4_096, 2_048, "ok"), (4_096, 2_049, "warn"), (4_096, 3_584, "warn"), (4_096, 3_585, "FAIL")],
)
def test_processes_leave_room_for_those_of_a_run(limit: int, running: int, status: str) -> None:
    assert only(check_processes([node(max_processes=limit, num_processes=running)])).status == status


def test_every_connection_that_does_not_work_is_named() -> None:
    links = [
        Link(source="10.0.0.1", target="10.0.0.2", error=None),
        Link(source="10.0.0.2", target="10.0.0.1", error="timed out"),
    ]
    assert only(check_ports(links)).found == "from 10.0.0.2 to 10.0.0.1: timed out"
    assert statuses(check_ports(links[:1])) == ["ok"]


def test_a_rank_that_fails_the_round_trip_is_named() -> None:
    trip = RoundTrip(num_ranks=3, seconds=90.0, errors=(("10.0.0.2", "no answer within 90 s"),))
    check = only(check_round_trip(trip))
    assert (check.status, check.found, check.expected) == (
        "FAIL", "10.0.0.2: no answer within 90 s", "an all_reduce over 3 Gloo ranks",
    )  # fmt: skip
    assert "GLOO_SOCKET_IFNAME" in check.fix
    assert statuses(check_round_trip(RoundTrip(num_ranks=0, seconds=0.0, errors=()))) == ["skip"]


def gpu(pid: int, *, is_running: bool = True, title: str = "ray::RolloutWorker", parent: int = 77) -> GpuProcess:
    return GpuProcess(pid=pid, used_mib=70_000, gpu="GPU-1", is_running=is_running, title=title, parent=parent)


def test_gpu_memory_of_a_process_that_has_ended_fails() -> None:
    checks = check_gpus([node(gpu_processes=(gpu(1), gpu(2, is_running=False, title="", parent=0)))])
    assert only(checks).status == "FAIL"
    assert only(checks).found == "10.0.0.1, GPU-1: 70,000 MiB by process 2, which has ended"


def test_gpu_memory_of_an_engine_that_lost_its_parent_fails() -> None:
    check = only(check_gpus([node(gpu_processes=(gpu(9, title="VLLM::EngineCore", parent=1),))]))
    assert (check.status, check.fix) == ("FAIL", "kill 9")
    assert "(VLLM::EngineCore) without a parent" in check.found


def test_a_container_that_sees_none_of_the_drivers_processes_is_only_warned() -> None:
    unseen = gpu(5, is_running=False, title="", parent=0)
    check = only(check_gpus([node(gpu_processes=(unseen,), is_container=True)]))
    assert check.status == "warn"
    assert "not seen in this container" in check.found
    # it does see others: then the number is one of its own
    assert only(check_gpus([node(gpu_processes=(unseen, gpu(1)), is_container=True)])).status == "FAIL"


def test_gpus_without_processes_pass_and_no_gpus_are_skipped_with_the_reason() -> None:
    assert statuses(check_gpus([node(gpu_processes=()), node("10.0.0.2")])) == ["ok"]
    check = only(check_gpus([node(), node("10.0.0.2")]))
    assert (check.status, check.found) == ("skip", "no nvidia-smi here")


def test_a_node_that_sees_another_folder_is_named() -> None:
    check = only(check_shared_folder(SharedFolder(folder="/runs", blind=("10.0.0.2",)), num_nodes=2))
    assert (check.status, check.found) == ("FAIL", "10.0.0.2 does not see what is written into /runs")
    read_only = SharedFolder(folder="/runs", blind=(), error="[Errno 30] Read-only file system: '/runs/x'")
    assert only(check_shared_folder(read_only, num_nodes=1)).status == "FAIL"
    assert statuses(check_shared_folder(None, num_nodes=1)) == ["skip"]


@pytest.mark.parametrize(("free", "status"), [(72 * GIB, "ok"), (72 * GIB - 1, "FAIL")])
def test_the_disk_holds_the_checkpoints_that_are_kept_and_one_more(free: int, status: str) -> None:
    check = only(check_disk([node(disk_free_bytes=free)], NEEDS))
    assert check.status == status
    assert "72.00 GiB for 3 checkpoints of 24.00 GiB" in check.found + check.expected


def test_the_disk_without_a_size_to_compare_with() -> None:
    needs = Needs(
        folder=NEEDS.folder, snapshot_bytes=None, num_snapshots=2, checkpoint_bytes=None, num_checkpoints=3
    )  # fmt: skip
    assert statuses(check_disk([node(disk_free_bytes=9 * GIB)], needs)) == ["warn"]
    assert statuses(check_disk([node(disk_free_bytes=11 * GIB)], needs)) == ["ok"]
    assert statuses(check_disk([node(disk_free_bytes=None)], UNKNOWN)) == ["skip"]


@pytest.mark.parametrize(
    ("ahead", "uncertainty", "status"),
    [(0.9, 0.0, "ok"), (-1.5, 0.0, "warn"), (5.0, 4.5, "ok"), (61.0, 0.5, "FAIL"), (-3600.0, 0.1, "FAIL")],
)
def test_clocks_that_are_apart(ahead: float, uncertainty: float, status: str) -> None:
    clocks = [Clock(address="10.0.0.2", ahead_seconds=ahead, uncertainty_seconds=uncertainty)]
    check = only(check_clocks(clocks))
    assert check.status == status
    assert status == "ok" or check.found.startswith(f"10.0.0.2: {ahead:+.2f} s")
