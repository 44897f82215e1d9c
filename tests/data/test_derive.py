"""The chains come from GSM8K's annotations by substitution, and the shipped files are what the command makes."""

import json
from pathlib import Path

import pytest

from system.data.chains.derive import RejectedSolution, compose, derive_chains, derive_expression, main
from system.data.chains.expressions import canonical_text

ROOT = Path(__file__).parents[2]
GSM8K = ROOT / ".." / "shared" / "data" / "gsm8k"


def test_earlier_results_are_substituted_into_later_expressions() -> None:
    assert compose([("48/2", "24"), ("48+24", "72")]) == "48+(48/2)"
    assert compose([("2*3", "6"), ("6+1", "7"), ("7*6", "42")]) == "((2*3)+1)*(2*3)"


def test_numbers_are_normalised() -> None:
    assert derive_expression("<<.50*(12)=6>> #### 6") == "0.5*12"


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        ("no mark #### 5", "no annotation"),
        ("<<5=5>> #### 5", "no operation"),
        ("<<2+2=4>> #### 5", "not the published answer"),
        ("<<3+-3=0>> #### 0", "does not evaluate"),
        ("<<1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1=35>> #### 35", "expression too long"),
    ],
)
def test_solution_that_gives_no_chain_is_rejected_with_its_reason(solution: str, reason: str) -> None:
    with pytest.raises(RejectedSolution, match=reason):
        derive_expression(solution)


def test_training_expression_that_occurs_in_the_test_set_is_left_out() -> None:
    kept, counts = derive_chains(
        ["<<4*6=24>> <<24+1=25>> #### 25", "<<3*6=18>> #### 18"], excluded=frozenset({canonical_text("4*6+1")})
    )
    assert kept == ["3*6"]
    assert counts["occurs in the test set"] == 1


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not beside the repository")
def test_shipped_files_are_what_the_command_derives(tmp_path: Path) -> None:
    arguments = ["--train", str(GSM8K / "train.jsonl"), "--test", str(GSM8K / "test.jsonl"), "--out", str(tmp_path)]
    assert main(arguments) == 0
    for name in ("train.txt", "test.txt"):
        assert (tmp_path / name).read_bytes() == (ROOT / "system" / "data" / "chains" / name).read_bytes()


@pytest.mark.parametrize("content", [None, "", "not json\n", '{"question": "?"}\n', "[1]\n", '{"answer": 3}\n'])
def test_file_that_is_no_gsm8k_ends_in_one_clear_line(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    good = tmp_path / "test.jsonl"
    good.write_text(json.dumps({"answer": "<<1+1=2>> #### 2"}) + "\n", encoding="utf-8")
    assert main(["--train", str(path), "--test", str(good), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("--train: given")
    assert "expected GSM8K's JSON lines" in message
