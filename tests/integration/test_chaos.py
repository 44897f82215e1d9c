"""Rollout workers are killed and stopped at random moments; the run ends well. The long form: benchmarks/chaos.py."""

from pathlib import Path

import pytest

from benchmarks.chaos import run_chaos

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_a_run_whose_workers_die_and_hang_ends_well(tmp_path: Path) -> None:
    figures = run_chaos(tmp_path, num_workers=2, num_kills=2, num_stops=1, seconds=60.0, seed=0)

    assert figures["ledger_balanced"] is True
    assert (figures["kills"], figures["stops"]) == (2, 1), figures
    assert figures["num_updates"] > 0
    assert figures["num_processes_left"] == 0


def test_a_run_whose_only_worker_hangs_and_whose_next_one_dies_makes_all_its_updates(tmp_path: Path) -> None:
    figures = run_chaos(
        tmp_path,
        num_workers=1,
        num_kills=1,
        num_stops=1,
        seconds=300.0,
        seed=1,  # the stop comes first, in generation; the kill meets the replacement while it starts
        num_updates=12,
        fault_seconds=5.0,
        first_update=2,
    )

    assert figures["ledger_balanced"] is True
    assert (figures["kills"], figures["stops"]) == (1, 1), figures
    assert figures["num_updates"] == 12
    assert figures["num_processes_left"] == 0
