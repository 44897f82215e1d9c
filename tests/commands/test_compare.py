"""Tables and figures of several runs: what they compute, on runs written by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from transformers import AutoModelForCausalLM

from system.cli import main
from system.commands import triplets_report
from system.data.triplet_policy import write_policy


def write_run(folder: Path, *, accuracies: dict[int, float], alarm_at: int | None = None, gain: float = 0.1) -> Path:
    folder.mkdir()
    lines = []
    for version in range(6):
        metrics: dict[str, float] = {}
        if version > 0:
            metrics |= {"completion/length_mean_tokens": 30.0, "credit/value_at_step_0": 0.5, "train/accuracy": 0.4}
            metrics["guard/repetition"] = float(alarm_at is not None and version >= alarm_at)
        if version in accuracies:
            metrics |= {"eval/accuracy_sampled": accuracies[version], "eval/length_mean_tokens": 30.0 - version}
            metrics |= {"eval/pass_at_2": accuracies[version] + 0.1} if version in (0, 5) else {}
        lines.append({"policy_version": version, "metrics": metrics, "timing": {}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "accuracy_before": accuracies[0],
        "accuracy_after": accuracies[5],
        "accuracy_greedy_before": 0.5,
        "accuracy_greedy_after": 0.5 + gain,
        "num_updates": 5,
        "seconds": 90.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_compare_runs_tabulates_gains_tokens_and_alarms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "a", accuracies={0: 0.25, 3: 0.3, 5: 0.5}, alarm_at=4)
    second = write_run(tmp_path / "b", accuracies={0: 0.25, 3: 0.3, 5: 0.5}, gain=0.3)
    figure = tmp_path / "figure.png"
    assert main(["compare", f"one={first},{second}", str(second), "--figure", str(figure)]) == 0
    table = capsys.readouterr().out.splitlines()
    # tokens for each right one: 30 / 0.25 before, (30 - 5) / 0.5 after; greedy gains 10 and 30 points
    assert table[2].startswith("| one | 25.0 → 50.0, 25.0 → 50.0 | +25.0 ± 0.0 | +20.0 ±")
    assert table[2].endswith("| 30 → 25 | 120 → 50 | 5 in 1.5, 5 in 1.5 | repetition at 4; - |")
    assert table[3] == "| b | 25.0 → 50.0 | +25.0 | +30.0 | 30 → 25 | 120 → 50 | 5 in 1.5 | - |"
    assert imread(figure).std() > 0.02


def test_a_folder_without_a_finished_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    assert "expected a finished run with summary.json" in capsys.readouterr().err
    run = write_run(tmp_path / "a", accuracies={0: 0.25, 5: 0.5})
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"accuracy_after": None, "stopped_by": "SIGTERM"}))
    assert main(["compare", str(run)]) == 2
    assert f"ended by SIGTERM. Fix: credence train --resume {run}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triplets")
    write_policy(folder)
    return folder


def share_with_222(length: int) -> float:
    """Of all sequences over three characters; those without number a(n) = 2 a(n-1) + 2 a(n-2) + 2 a(n-3)."""
    without = [1, 3, 9]
    while len(without) <= length:
        without.append(2 * sum(without[-3:]))
    return 1 - without[length] / 3**length


def test_the_probability_of_switching_is_exact_for_a_uniform_policy(policy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    for forced in triplets_report.FORCED:
        probability = triplets_report.probability_of_answer(model, forced=forced, num_tokens=12)
        assert probability == pytest.approx(share_with_222(9), abs=1e-6)


def test_the_probability_of_switching_in_long_responses_is_the_share_of_sampled_ones(policy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    probability = triplets_report.probability_of_answer(model, forced=(0, 0, 0), num_tokens=32)
    assert probability == pytest.approx(share_with_222(29), abs=0.032)  # four standard errors


def test_the_probability_of_switching_reads_what_was_forced(policy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    first, second = (
        triplets_report.probability_of_answer(model, forced=forced, num_tokens=12) for forced in triplets_report.FORCED
    )
    assert 0 < first < 1
    assert not math.isclose(first, second, abs_tol=1e-6)
