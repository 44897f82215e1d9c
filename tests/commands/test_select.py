"""`credence select` on a hand-made file: accuracies worked out on paper, and what it refuses before it starts."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from system.cli import main
from system.commands.completion_source import load_monitored_config
from system.config.algorithms import evidence_of
from system.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
# answer, self-certainty, right
SEVENS = [("7", 1.0, 1.0), ("7", 2.0, 1.0), ("8", 9.0, 0.0), ("9", 3.0, 0.0)]
FIVES = [("5", 9.0, 1.0), ("6", 1.0, 0.0), ("6", 2.0, 0.0), (None, 10.0, 0.0)]


def group(answers: Sequence[tuple[str | None, float, float]], *, name: str) -> dict[str, Any]:
    return {
        "group_id": 0,
        "prompt_id": name,
        "prompt": "3+4:",
        "prompt_token_ids": [6, 13, 7, 19],
        "reference_answer": answers[0][0],
        "completions": [
            {
                "text": "3+4=7\n" if answer is None else f"3+4=7\n#{answer}",
                "token_ids": [6, 13, 7, 19, 6, 1],
                "sampled_spans": [[4, 6]],
                "finish_reason": "stop",
                "rewards": {"verifier": right, "self_certainty": certainty},
            }
            for answer, certainty, right in answers
        ],
    }


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def config_path(tmp_path: Path, minimal_overrides: list[str]) -> str:
    sections: dict[str, list[str]] = {}
    for override in [*minimal_overrides, f"run.directory={tmp_path}"]:
        key, _, value = override.partition("=")
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append(f"  {name}: {value}")
    path = tmp_path / "minimal.yaml"
    path.write_text("\n".join(f"{name}:\n" + "\n".join(lines) for name, lines in sections.items()) + "\n")
    return str(path)


def test_accuracies_are_those_worked_out_by_hand(
    tmp_path: Path, config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "groups.jsonl", group(SEVENS, name="a"), group(FIVES, name="b"))
    powers = ["--power", "0.3", "--power", "1"]
    # the model folder has no weights that could be loaded: a file with all scores needs none
    assert main(["select", config_path, "model.path=./absent", "--completions", file, *powers]) == 0

    output = capsys.readouterr().out
    folder = tmp_path / "select-test"
    values = json.loads((folder / "select.json").read_text())
    accuracy = {(row["selector"], row["num_completions"]): row["accuracy"] for row in values["rows"]}
    at_four = {selector: value for (selector, size), value in accuracy.items() if size == 4}
    assert at_four == {
        "pass_at_n": 1.0,
        "highest_certainty": 0.5,  # 8 is wrong, 5 is right
        "borda_p0.3": 0.5,  # 7 has 1 + 2^0.3 > 4^0.3 votes; 6 has 1 + 2^0.3 > 3^0.3
        "borda_p1": 0.25,  # 8 has 4 > 3 votes; 5 and 6 have 3 each
        "majority": 0.5,
        "random": pytest.approx(0.375),
    }
    assert accuracy["pass_at_n", 1] == pytest.approx(0.375)
    assert accuracy["pass_at_n", 2] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert values["num_unanswered"] == 1
    assert values["choices"][0] == {
        "prompt_id": "a", "highest_certainty": 2, "borda_p0.3": 0, "borda_p1": 2, "majority": 0
    }  # fmt: skip
    assert values["choices"][1]["highest_certainty"] == 0
    assert (folder / "select.png").stat().st_size > 10_000
    assert not (folder / "completions.jsonl").exists()

    closing = json.loads(output.splitlines()[-1])
    assert closing["num_problems"] == 2
    assert closing["num_completions"] == 4
    assert closing["select/accuracy_borda_p1"] == 0.25
    assert closing["select/gain_over_majority_borda_p1"] == -0.25
    assert closing["output"] == str(folder)
    assert [line.split()[:2] for line in output.splitlines()[2:5]] == [["1", "37.5"], ["2", "66.7"], ["4", "100.0"]]
    assert "Borda p=0.3" in output.splitlines()[1]


def test_nothing_is_overwritten(tmp_path: Path, config_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "groups.jsonl", group(SEVENS, name="a"))
    (tmp_path / "select-test").mkdir()
    assert main(["select", config_path, "--completions", file]) == 0
    assert (tmp_path / "select-test-2" / "select.json").exists()
    assert main(["select", config_path, "--completions", file, "--output", str(tmp_path / "select-test-2")]) == 2
    assert "--output: given" in capsys.readouterr().err


def test_the_first_completions_of_each_group_can_be_taken(tmp_path: Path, config_path: str) -> None:
    shorter = group(FIVES[:2], name="b")
    file = write(tmp_path / "groups.jsonl", group(SEVENS, name="a"), shorter)
    output = tmp_path / "out"
    assert main(["select", config_path, "--completions", file, "--num-completions", "2", "--output", str(output)]) == 0
    values = json.loads((output / "select.json").read_text())
    assert values["num_completions"] == 2
    assert {row["num_completions"] for row in values["rows"]} == {1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "groups.jsonl:2: given '2 completions', expected 4, as at"),
        (["--num-completions", "3"], "groups.jsonl:2: given '2 completions', expected at least --num-completions 3"),
        (["--num-completions", "0"], "--num-completions: given 0, expected at least 1"),
        (["--power", "1", "--power", "1"], "--power: given '1, 1', expected different numbers from 0 to 100"),
        (["--power", "-1"], "--power: given '-1'"),
        (["--subsets", "0"], "--subsets: given 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, config_path: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "groups.jsonl", group(SEVENS, name="a"), group(FIVES[:2], name="b"))
    assert main(["select", config_path, "--completions", file, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not list(tmp_path.glob("select-*")), "a folder was made before the mistake was found"


def test_completions_of_another_tokenizer_are_refused(
    tmp_path: Path, config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    unscored = group(SEVENS, name="a")
    del unscored["completions"][1]["rewards"]["self_certainty"]
    unscored["completions"][3]["token_ids"][5] = 151_643
    file = write(tmp_path / "groups.jsonl", group(SEVENS, name="b"), unscored)
    assert main(["select", config_path, "model.path=builtin:chains_1m", "--completions", file]) == 2
    error = capsys.readouterr().err
    assert "groups.jsonl:2: given 'token id 151643 in completion 3', expected ids below 24" in error
    long = {"prompt": "3+4:", "reference_answer": "7", "completions": ["3+4=7" * 60]}
    file = write(tmp_path / "long.jsonl", long)
    assert main(["select", config_path, "model.path=builtin:chains_1m", "--completions", file]) == 2
    assert (
        "long.jsonl:1: given '304 tokens in prompt and completion 0', expected at most 200" in capsys.readouterr().err
    )


def test_a_configuration_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", "run.seed=1"]) == 2
    assert "CONFIG: given 'run.seed=1', expected at least one YAML file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overlay", "overrides"),
    [
        (None, []),
        (None, ["scorer.num_workers=2", "scorer.cpus_per_worker=0.125"]),
        ("intuitor.yaml", []),  # certainty is the only reward
        ("barl.yaml", []),  # a weight beside the verifier's would be refused
    ],
)
def test_every_configuration_gets_scoring_replicas(overlay: str | None, overrides: list[str]) -> None:
    paths = [str(CONFIGS / "demo.yaml"), *([str(CONFIGS / "algorithm" / overlay)] if overlay else [])]
    config = load_monitored_config(paths, overrides=overrides, command="select", check_devices=False)
    assert [term.scorer for term in config.reward.terms] == ["verifier", "self_certainty"]
    assert evidence_of(config.algorithm) is None


def test_mistakes_in_a_configuration_are_named_whatever_is_monitored() -> None:
    with pytest.raises(ConfigError, match=r"^learner\.zero_stage: given 7"):
        load_monitored_config(
            [str(CONFIGS / "demo.yaml")],
            overrides=["learner.zero_stage=7", "scorer.num_workers=2"],
            command="select",
            check_devices=False,
        )
