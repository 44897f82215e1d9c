"""The synthetic task of the BARL paper end to end: another architecture, and hypotheses that the task judges."""

import statistics
import sys
from pathlib import Path

import pytest
from credence_process import metric_lines, require_success, run, summary

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

NUM_UPDATES = 80


def test_barl_learns_the_trained_prompts_and_to_try_what_it_believes_on_the_other(tmp_path: Path) -> None:
    keys = {
        "run.num_updates": NUM_UPDATES,
        "run.directory": tmp_path,
        "run.name": "triplets",
        "run.max_seconds": "null",
        "learner.num_ranks": 1,
        "evaluation.every_updates": "null",
        "tracker.wandb_mode": "disabled",
    }
    arguments = (f"{key}={value}" for key, value in keys.items())
    require_success(run([sys.executable, "-m", "system", "train", "configs/experiment/triplets_barl.yaml", *arguments]))
    lines = metric_lines(tmp_path / "triplets")
    accuracies = [line["metrics"]["train/accuracy"] for line in lines[1:]]
    assert len(accuracies) == NUM_UPDATES
    assert statistics.fmean(accuracies[:5]) < 0.5  # an untrained policy solves about a fifth
    assert statistics.fmean(accuracies[-5:]) > 0.8
    figures = summary(tmp_path / "triplets")
    assert figures["accuracy_before"] < 0.3
    assert figures["accuracy_after"] > 0.4  # the held-out prompt; Markovian RL has 0.0 here
    assert figures["ledger_balanced"] is True
    assert figures["canary_max_abs_diff"] < 1e-4
