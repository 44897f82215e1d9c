"""BARL end to end: hypotheses from the verifier's workers, beliefs from a replica that follows the policy."""

import json
import sys
from pathlib import Path

import pytest
from credence_process import command, metric_lines, require_success, run, summary

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_barl_trains_on_beliefs_of_the_version_that_generated(tmp_path: Path) -> None:
    arguments = command(
        tmp_path,
        algorithm__name="barl",
        algorithm__options__candidates=3,
        scorer__cpus_per_worker=0.25,
        reward__terms="[{scorer: verifier}, {scorer: self_certainty, weight: 0}]",
        evaluation__every_updates="null",
    )
    require_success(run(arguments))
    lines = metric_lines(tmp_path / "small")
    assert len(lines) == 5
    for line in lines[1:]:
        metrics = line["metrics"]
        assert metrics["scorer/lag_max_versions"] == 0
        assert metrics["weight_sync/num_receivers"] == 2
        assert 1 < metrics["belief/num_hypotheses_mean"] <= 4
        assert 1 < metrics["belief/num_steps_mean"] < 8
        assert 0 < metrics["belief/reference_weight_mean"] < 1
        assert metrics["advantage/mean_abs"] > 0
        assert metrics["learner/gradient_norm"] > 0
        assert metrics["reward/self_certainty_mean"] > 0  # monitored beside it, on the same replica
        assert metrics["reward/mean"] == metrics["train/accuracy"]
        assert -1 <= metrics["credit/value_at_step_0"] <= 2
    timing = json.loads((tmp_path / "small" / "metrics.jsonl").read_text().splitlines()[-1])["timing"]
    phases = {"hypotheses", "trees", "forward", "advantages"}
    assert all(timing[f"credit/{phase}_seconds"] > 0 for phase in phases)
    figures = summary(tmp_path / "small")
    assert figures["ledger_balanced"] is True
    assert set(figures["credit_seconds_by_phase"]) == phases
    assert (tmp_path / "small" / "beliefs" / "00000000.png").exists()
    drawn = run([sys.executable, "-m", "system", "belief", str(tmp_path / "small")])
    require_success(drawn)
    assert "reference" in drawn.stdout
