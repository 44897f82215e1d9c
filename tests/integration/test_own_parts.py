"""A reward, a task and an algorithm of a user's own, from a folder outside of the repository."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from credence_process import ROOT, environment, metric_lines, require_success, small_keys

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
OWN_PARTS = ROOT / "docs" / "own_parts"
OWN_KEYS = {
    "task.name": "own_task:ShortChains",
    "task.max_train_steps": "null",
    "algorithm.name": "own_algorithm:BestOfGroup",
    "algorithm.options.margin": 0.0,
    "reward.terms": "[{scorer: verifier}, "
    "{scorer: 'own_rewards:ShortAnswers', weight: 0.01, options: {free_tokens: 5}}, "
    "{scorer: 'own_rewards:OftenRaises', weight: 0}]",
    "run.num_updates": 2,
    "evaluation.every_updates": "null",
}


def test_own_parts_run_from_the_working_directory(tmp_path: Path) -> None:
    shutil.copytree(OWN_PARTS, tmp_path / "mine")
    keys = small_keys(tmp_path / "runs", name="own") | OWN_KEYS
    arguments = [f"{key}={value}" for key, value in keys.items()]
    done = subprocess.run(
        # -P as the credence script: the working directory is not on the path by itself
        [sys.executable, "-P", "-m", "system", "train", str(ROOT / "configs" / "demo.yaml"), *arguments],
        cwd=tmp_path / "mine",
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    require_success(done)
    lines = metric_lines(tmp_path / "runs" / "own")
    assert len(lines) == 3
    for line in lines[1:]:
        metrics = line["metrics"]
        assert metrics["reward/short_answers_mean"] < 0
        assert metrics["own/num_pushed"] >= 1
        assert 0 < metrics["reward/invalid_raised"] < 32  # groups with an odd number; monitored, so none is lost
        assert metrics["reward/num_invalid"] == 0
        assert metrics["reward/mean"] < metrics["train/accuracy"]
