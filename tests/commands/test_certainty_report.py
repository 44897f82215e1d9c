"""`credence certainty-report` on recorded groups: statistics worked out on paper, and what it refuses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from system.cli import main

# self-certainty, verdict (None: invalid)
EASY = [(1.0, 1.0), (2.0, 1.0), (9.0, 0.0), (3.0, 0.0)]
HARD = [(9.0, 1.0), (1.0, 0.0), (2.0, 0.0), (10.0, 0.0), (50.0, None)]


def line(
    judgements: Sequence[tuple[float, float | None]], *, scorers: tuple[str, ...] = ("self_certainty", "verifier")
) -> str:
    record: dict[str, Any] = {
        "prompt": "3+4:",
        "prompt_token_ids": [6, 13, 7, 19],
        "reference_answer": "7",
        "completions": [
            {
                "text": "#7",
                "token_ids": [6, 13, 7, 19, 6, 1],
                "sampled_spans": [[4, 6]],
                "finish_reason": "stop",
                "rewards": dict(zip(("self_certainty", "verifier"), judgement, strict=True)),
            }
            for judgement in judgements
        ],
    }
    for completion in record["completions"]:
        completion["rewards"] = {name: completion["rewards"][name] for name in scorers}
    return json.dumps(record) + "\n"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    rollouts = tmp_path / "run" / "rollouts"
    rollouts.mkdir(parents=True)
    (rollouts / "00000001.jsonl").write_text(line(EASY))
    (rollouts / "00000002.jsonl").write_text(line(HARD))
    return tmp_path / "run"


def test_statistics_of_a_run_are_those_worked_out_by_hand(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certainty-report", str(run_folder)]) == 0

    values = json.loads((run_folder / "certainty_report" / "certainty_report.json").read_text())
    assert (values["right_num_completions"], values["wrong_num_completions"], values["num_left_out"]) == (3, 5, 1)
    assert (values["right_mean"], values["right_median"]) == (4.0, 2.0)  # 1, 2, 9
    assert (values["wrong_mean"], values["wrong_median"]) == (5.0, 3.0)  # 9, 3, 1, 2, 10
    # 1 beats none and ties one; 2 beats one and ties one; 9 beats three and ties one
    assert values["u_statistic"] == 5.5
    assert values["auc"] == pytest.approx(5.5 / 15)
    assert 0.3 < values["p_value"] <= 1.0
    # the first problem: 0 of 4 pairs; the second: 2 of 3
    assert values["within_num_problems"] == 2
    assert values["within_auc"] == pytest.approx((0 + 2 / 3) / 2)
    assert (run_folder / "certainty_report" / "certainty_report.png").stat().st_size > 10_000

    output = capsys.readouterr().out.splitlines()
    closing = json.loads(output[-1])
    assert closing["certainty/u_statistic"] == 5.5
    assert closing["num_completions"] == 8
    assert output[1].split() == ["right", "3", "4.0000", "2.0000"]
    assert "U = 5.5" in output[4]


def test_a_file_does_as_well_and_nothing_is_overwritten(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "completions.jsonl"
    file.write_text(line(EASY))
    assert main(["certainty-report", str(file)]) == 0
    assert main(["certainty-report", str(file)]) == 0
    assert (tmp_path / "certainty_report" / "certainty_report.json").exists()
    assert (tmp_path / "certainty_report-2" / "certainty_report.json").exists()
    assert main(["certainty-report", str(file), "--output", str(tmp_path / "certainty_report")]) == 2


def test_wrong_completions_alone_are_no_test_but_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "completions.jsonl"
    file.write_text(line([(1.0, 0.0), (2.0, 0.0)]))
    assert main(["certainty-report", str(file)]) == 0
    output = capsys.readouterr().out
    assert "No test: there are no right or no wrong completions" in output
    closing = json.loads(output.splitlines()[-1])
    assert closing["certainty/right_mean"] is None
    assert closing["certainty/p_value"] is None
    assert closing["certainty/wrong_mean"] == 1.5


@pytest.mark.parametrize(
    ("scorers", "message"),
    [
        (("verifier",), "given '1 recorded groups without self_certainty', expected completions with rewards by"),
        (("self_certainty",), "given '1 recorded groups without verifier'"),
    ],
)
def test_a_run_that_did_not_monitor_both_is_told_how(
    run_folder: Path, scorers: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "rollouts" / "00000001.jsonl").write_text(line(EASY, scorers=scorers))
    (run_folder / "rollouts" / "00000002.jsonl").unlink()
    assert main(["certainty-report", str(run_folder)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "a reward term {scorer: self_certainty, weight: 0} monitors it" in error or "credence select" in error
    assert error.count("\n") == 1


def test_what_would_be_ignored_is_refused(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certainty-report", str(run_folder), "run.seed=1"]) == 2
    assert "run.seed=1: given" in capsys.readouterr().err
    assert main(["certainty-report", str(run_folder), "--num-completions", "4"]) == 2
    assert "recorded completions are read as they are" in capsys.readouterr().err
    assert main(["certainty-report", str(run_folder / "rollouts")]) == 2
    assert "given 'no rollouts/*.jsonl'" in capsys.readouterr().err
    assert main(["certainty-report", "run.seed=1"]) == 2
    assert "CONFIG: given 'run.seed=1'" in capsys.readouterr().err
