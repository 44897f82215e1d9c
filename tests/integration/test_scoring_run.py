"""Runs whose reward is the policy's own certainty: real Ray, real vLLM, real DeepSpeed, real replicas."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from credence_process import (
    command,
    metric_lines,
    require_success,
    resume_command,
    run,
    started,
    summary,
    wait_for_phase,
)

from benchmarks.run_processes import family_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

INTUITOR: dict[str, Any] = {
    "run__num_updates": 5,
    "reward__terms": "[{scorer: verifier, weight: 0}, {scorer: self_certainty}]",
    "scorer__cpus_per_worker": 0.25,
    "loss__kl_coefficient": 0.05,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of five updates with online self-certainty as the only reward."""
    directory = tmp_path_factory.mktemp("undisturbed")
    require_success(run(command(directory, **INTUITOR)))
    return directory / "small"


def test_scores_come_from_the_version_that_generated_and_its_logprobs_are_the_engines(undisturbed: Path) -> None:
    lines = metric_lines(undisturbed)
    assert len(lines) == 6
    for line in lines[1:]:
        metrics = line["metrics"]
        assert metrics["scorer/lag_max_versions"] == 0
        assert 0 < metrics["scorer/logprob_max_abs_diff_nats"] < 1e-4
        assert metrics["weight_sync/num_receivers"] == 2
        assert metrics["weight_sync/canary_max_abs_diff_nats"] < 1e-4
        # the mean over completions here, over tokens in the learner: close, not equal
        assert metrics["reward/self_certainty_mean"] == pytest.approx(metrics["learner/self_certainty_nats"], rel=0.1)
        assert metrics["reward/mean"] == pytest.approx(metrics["reward/self_certainty_mean"])
        assert "train/accuracy" in metrics
    assert summary(undisturbed)["ledger_balanced"] is True


def test_two_replicas_of_which_one_dies_give_the_same_metrics(undisturbed: Path, tmp_path: Path) -> None:
    arguments = command(tmp_path, **INTUITOR | {"scorer__num_workers": 2, "scorer__cpus_per_worker": 0.125})
    with started(arguments, log=tmp_path / "log") as process:
        wait_for_phase(tmp_path / "small", "rollout", process=process, at_least=1)
        replicas = [child for child in family_of(process.pid) if "ScoringWorker" in " ".join(child.cmdline())]
        assert len(replicas) == 2
        replicas[0].kill()
        assert process.wait(300) == 0, (tmp_path / "log").read_text()[-5000:]
    disturbed_names = ("scorer/num_", "weight_sync/num_", "weight_sync/canary_max_abs_diff_nats")
    lines = metric_lines(tmp_path / "small")
    assert lines[-1]["metrics"]["scorer/num_restarts"] == 1
    for line, expected in zip(lines, metric_lines(undisturbed), strict=True):
        for name, value in expected["metrics"].items():
            if not name.startswith(disturbed_names):
                assert line["metrics"][name] == value, name


def test_an_average_of_the_weights_survives_a_resume(tmp_path: Path) -> None:
    ema = INTUITOR | {"run__num_updates": 4, "scorer__mode": "ema", "scorer__ema_decay": 0.5}
    require_success(run(command(tmp_path, **ema)))
    uninterrupted = metric_lines(tmp_path / "small")
    assert uninterrupted[-1]["metrics"]["scorer/lag_max_versions"] == 0
    shutil.rmtree(tmp_path / "small" / "checkpoints" / "update_000004")
    require_success(run(resume_command(tmp_path / "small")))
    assert metric_lines(tmp_path / "small") == uninterrupted


def test_an_offline_scorer_stays_at_the_base_model_and_a_mixture_rewards_both(tmp_path: Path) -> None:
    mixture = {
        "reward__terms": "[{scorer: verifier, weight: 0.5}, {scorer: self_certainty, weight: 0.5}]",
        "reward__normalise_terms": True,
        "scorer__mode": "offline",
    }
    require_success(run(command(tmp_path, **INTUITOR | mixture | {"run__num_updates": 3})))
    metrics = [line["metrics"] for line in metric_lines(tmp_path / "small")[1:]]
    assert [line["scorer/lag_max_versions"] for line in metrics] == [0, 1, 2]
    assert [line["weight_sync/num_receivers"] for line in metrics] == [1, 1, 1]
    assert {"reward/verifier_mean", "reward/self_certainty_mean"} <= set(metrics[0])
    # normalised terms: their weighted sum has no unit and is zero in the mean
    assert abs(metrics[0]["reward/mean"]) < 1e-6
