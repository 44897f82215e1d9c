"""Processes of a run are killed and stopped at random moments; it ends well. The long form: benchmarks/chaos.py."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import run_chaos

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

# The run ends with its updates, and the faults come after its first one: neither depends on the speed of the machine.
SHORT: dict[str, Any] = {"seconds": 300.0, "num_stops": 1, "first_update": 1}


def require_well(figures: dict[str, Any], *, num_kills: int, num_updates: int) -> None:
    assert figures["ledger_balanced"] is True
    assert (figures["kills"], figures["stops"]) == (num_kills, 1), figures
    assert figures["num_updates"] == num_updates
    assert figures["num_processes_left"] == 0


def test_a_run_whose_processes_of_all_kinds_die_and_of_which_one_hangs_ends_well(tmp_path: Path) -> None:
    kinds = ("rollout", "engine", "reward", "verifier", "learner")
    figures = run_chaos(
        tmp_path, num_workers=2, num_kills=5, num_updates=24, fault_seconds=25.0, seed=0, kinds=kinds, **SHORT
    )

    require_well(figures, num_kills=5, num_updates=24)
    assert [row["kills"] for row in figures["by_kind"].values()] == [1] * 5
    assert figures["learner_restarts"] == 1
    assert figures["ledger"]["trained"] == 24 * 8


def test_a_run_whose_only_worker_hangs_and_whose_next_one_dies_ends_well(tmp_path: Path) -> None:
    # with this seed the stop comes first, in generation; the kill meets the replacement while it starts
    figures = run_chaos(tmp_path, num_workers=1, num_kills=1, num_updates=12, fault_seconds=5.0, seed=1, **SHORT)

    require_well(figures, num_kills=1, num_updates=12)
