"""`credence belief` on a recorded group: what is drawn, and what is said when there is nothing to draw."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from system.algorithms.barl.records import AnswerHypotheses, BeliefTrace, read_trace
from system.cli import main
from system.commands.run_inputs import load_tokenizer
from system.config.load import dump_yaml, load_config
from system.config.machine import model_folder
from system.data.group_files import group_as_json, read_groups
from system.records import (
    Prompt,
    RewardTerm,
    ScoredGroup,
    TrajectoryGroup,
)
from tests.trajectories import single_turn

DEMO = str(Path(__file__).parents[3] / "configs" / "demo.yaml")
TEXT = "48/2=26\n48+26=74\n#74"


@pytest.fixture
def group() -> ScoredGroup:
    assert model_folder("builtin:chains_1m")
    token_ids = np.array(load_tokenizer(load_config([DEMO])).encode(TEXT, add_special_tokens=False), np.int32)
    trajectory = single_turn(token_ids.tolist(), prompt=[3, 4], text=TEXT)
    verdict = RewardTerm(scorer="verifier", value=0.0, status="ok", reason="wrong", policy_version=-1, seconds=0.0)
    prompt = Prompt(
        prompt_id="p", token_ids=np.array([3, 4], np.int32), text="48+(48/2):", reference_answer="72",
        task="gsm8k_chains",
    )  # fmt: skip
    return ScoredGroup(
        group=TrajectoryGroup(group_id=17, prompt=prompt, trajectories=(trajectory,)),
        terms=((verdict,),),
        evidence=(
            BeliefTrace(
                hypotheses=AnswerHypotheses(answers=("72", "74"), stated=np.array([1], np.int32), seconds=0.0),
                stated=1,
                step_ends=np.array([8, len(token_ids)], np.int32),
                answer_logprobs=np.array([np.log([0.3, 0.1]), np.log([0.1, 0.4]), [-np.inf, np.log(0.9)]], np.float32),
                policy_version=5,
                trees_seconds=0.1,
                forward_seconds=0.1,
            ),
        ),
    )  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path, group: ScoredGroup) -> Path:
    (tmp_path / "rollouts").mkdir()
    lines = [group, replace(group, group=replace(group.group, group_id=16))]
    (tmp_path / "rollouts" / "00000005.jsonl").write_text("".join(json.dumps(group_as_json(g)) + "\n" for g in lines))
    (tmp_path / "config.yaml").write_text(dump_yaml(load_config([DEMO], ["algorithm.name=barl"])))
    return tmp_path


def test_beliefs_come_back_from_a_line(group: ScoredGroup) -> None:
    trace = read_trace(json.loads(json.dumps(group_as_json(group)))["evidence"][0])
    assert group.evidence is not None
    (expected,) = group.evidence
    assert trace.hypotheses.answers == ("72", "74")
    assert (trace.step_ends.tolist(), trace.stated, trace.policy_version) == ([8, 20], 1, 5)
    np.testing.assert_allclose(np.exp(trace.answer_logprobs), np.exp(expected.answer_logprobs), atol=1e-4)


def test_a_line_with_beliefs_is_read_as_a_group_as_well(run_dir: Path) -> None:
    first, _ = read_groups(run_dir / "rollouts" / "00000005.jsonl", task_name="gsm8k_chains", tokenise=lambda text: [])
    assert first.scored.group.trajectories[0].text == TEXT


def test_steps_go_down_and_hypotheses_across(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["belief", str(run_dir), "--group", "17"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "group 17, policy version 5, completion 0 of 1, verifier 0.0"
    assert any("reference 72" in line and "74 (stated)" in line for line in lines)
    start, first, second = (line for line in lines if "0.30" in line or "48/2=26" in line or "48+26=74" in line)
    # weights .75 and .25 before the first step; it was worth 0 + .75 (0 - .3) + .25 (.9 - .1)
    assert "*0.75  0.30" in start
    assert " 0.25  0.10" in start
    assert "-0.02" in first or "-0.03" in first
    # progress of the reference: .1 - .3; the weight has moved to 74
    assert "-0.20" in first
    assert ">" in first
    assert "#74" in second
    assert "*1.00  0.90" in second


def test_the_newest_group_is_drawn_when_none_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["belief", str(run_dir)]) == 0
    assert capsys.readouterr().out.startswith("group 17")


def test_what_cannot_be_drawn_is_said_in_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["belief", str(run_dir), "--group", "3"]) == 2
    assert "--group: given 3, expected a group of" in (error := capsys.readouterr().err)
    assert "16, 17" in error
    assert main(["belief", str(run_dir), "--completion", "1"]) == 2
    assert "--completion: given 1, expected 0 to 0" in capsys.readouterr().err
    assert main(["belief", str(run_dir / "rollouts")]) == 2
    assert "RUN_DIR: given" in capsys.readouterr().err


def test_a_run_without_beliefs_says_so(run_dir: Path, group: ScoredGroup, capsys: pytest.CaptureFixture[str]) -> None:
    plain = replace(group, evidence=None)
    (run_dir / "rollouts" / "00000005.jsonl").write_text(json.dumps(group_as_json(plain)) + "\n")
    assert main(["belief", str(run_dir)]) == 2
    assert "expected a run that asked for beliefs" in capsys.readouterr().err
