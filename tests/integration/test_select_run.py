"""`credence select` as a user types it: real Ray, vLLM and replica; then both commands on the file it wrote."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from credence_process import require_success, run

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

NUM_PROBLEMS = 16
NUM_COMPLETIONS = 4


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "system", name, *map(str, arguments)]


def closing_line(completed: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    require_success(completed)
    return json.loads(completed.stdout.splitlines()[-1])


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sampled_groups_are_selected_from_and_can_be_read_again(tmp_path: Path) -> None:
    sampled = run(
        command(
            "select",
            "configs/demo.yaml",
            f"evaluation.num_problems_final={NUM_PROBLEMS}",
            "scorer.cpus_per_worker=0.25",
            *("--num-completions", NUM_COMPLETIONS, "--output", tmp_path / "sampled"),
        )
    )
    values = closing_line(sampled)
    assert (values["num_problems"], values["num_completions"]) == (NUM_PROBLEMS, NUM_COMPLETIONS)
    assert values["model"] == "builtin:chains_1m"
    assert f"sampling and scoring: {NUM_PROBLEMS}/{NUM_PROBLEMS} problems" in sampled.stderr

    file = tmp_path / "sampled" / "completions.jsonl"
    groups = lines_of(file)
    assert [group["group_id"] for group in groups] == list(range(NUM_PROBLEMS))
    rewards = [each["rewards"] for group in groups for each in group["completions"]]
    assert len(rewards) == NUM_PROBLEMS * NUM_COMPLETIONS
    assert all(set(each) == {"verifier", "self_certainty"} and each["self_certainty"] > 0 for each in rewards)
    accuracy = sum(each["verifier"] for each in rewards) / len(rewards)
    assert values["select/accuracy_random"] == pytest.approx(accuracy)

    again = closing_line(
        run(command("select", "configs/demo.yaml", *("--completions", file, "--output", tmp_path / "again")))
    )
    assert {name: value for name, value in again.items() if name.startswith("select/")} == {
        name: value for name, value in values.items() if name.startswith("select/")
    }

    report = closing_line(run(command("certainty-report", file, "--output", tmp_path / "report")))
    assert report["certainty/right_num_completions"] == round(accuracy * len(rewards))
    assert report["num_completions"] == len(rewards)
    assert (tmp_path / "report" / "certainty_report.png").exists()

    _require_the_same_when_scored_again(groups, folder=tmp_path)


def _require_the_same_when_scored_again(groups: list[dict[str, Any]], *, folder: Path) -> None:
    """Every second group without its rewards, the others as plain text, which lacks the end token only."""
    unscored = folder / "unscored.jsonl"
    with unscored.open("w") as file:
        for group in groups:
            completions = [each | {"rewards": {}} for each in group["completions"]]
            if group["group_id"] % 2:
                group = {name: group[name] for name in ("prompt", "reference_answer")}
                completions = [each["text"] for each in completions]
            file.write(json.dumps(group | {"completions": completions}) + "\n")
    arguments = ["configs/demo.yaml", "scorer.cpus_per_worker=0.25", "--completions", unscored]
    scored = run(command("select", *arguments, "--output", folder / "scored"))
    assert closing_line(scored)["model"] == "builtin:chains_1m"
    assert f"scoring: {NUM_PROBLEMS}/{NUM_PROBLEMS} problems" in scored.stderr
    for group, again in zip(groups, lines_of(folder / "scored" / "completions.jsonl"), strict=True):
        for each, scored_again in zip(group["completions"], again["completions"], strict=True):
            certainty = scored_again["rewards"]["self_certainty"]
            if group["group_id"] % 2 == 0:
                assert certainty == pytest.approx(each["rewards"]["self_certainty"], rel=1e-5)
                assert scored_again["rewards"]["verifier"] == each["rewards"]["verifier"]
            elif each["finish_reason"] == "stop":
                assert scored_again["token_ids"] == each["token_ids"][:-1]
                assert certainty == pytest.approx(each["rewards"]["self_certainty"], rel=0.2)
                assert scored_again["rewards"]["verifier"] == each["rewards"]["verifier"]
