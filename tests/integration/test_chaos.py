"""Rollout workers are killed and stopped at random moments; the run ends well. The long form: benchmarks/chaos.py."""

from pathlib import Path

import pytest

from benchmarks.chaos import run_chaos

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_run_whose_workers_die_and_hang_ends_well(num_workers: int, tmp_path: Path) -> None:
    figures = run_chaos(tmp_path, num_workers=num_workers, num_kills=2, num_stops=1, seconds=60.0, seed=0)

    assert figures["ledger_balanced"] is True
    assert (figures["kills"], figures["stops"]) == (2, 1), figures
    assert figures["num_updates"] > 0
    assert figures["num_processes_left"] == 0
