"""Groups go to a file and come back the same; bad lines are named by file and line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from system.data.group_files import group_as_json, read_groups
from system.errors import ConfigError
from system.records import Prompt, RewardTerm, ScoredGroup, TrajectoryGroup
from tests.trajectories import single_turn

PLAIN = {"prompt": "1+1:", "reference_answer": "2", "completions": ["1+1=2\n#2", ""]}
FULL = {
    "prompt": "1+1:",
    "prompt_token_ids": [3, 4],
    "reference_answer": "2",
    "completions": [
        {
            "text": "#2",
            "token_ids": [3, 4, 5, 1],
            "sampled_spans": [[2, 4]],
            "finish_reason": "stop",
            "rewards": {"verifier": 1.0},
        }
    ],
}


def scored_group() -> ScoredGroup:
    prompt = Prompt(
        prompt_id="test/7", token_ids=np.array([1, 2], np.int32), text="1+1:", reference_answer="2", task="chains"
    )
    trajectory = single_turn(
        [5, 6, 7],
        prompt=[1, 2],
        text="1+1=2\u2028#2",  # a line separator inside a text does not end the line
        logprobs=[-0.5, -0.25, np.nan],
        versions=[3, 4],
        version_starts=[0, 2],
        finish_reason="length",
    )
    terms = (
        RewardTerm(scorer="verifier", value=0.0, status="invalid", reason="timeout", policy_version=-1, seconds=5.0),
        RewardTerm(scorer="self_certainty", value=1.25, status="ok", reason="scored", policy_version=0, seconds=0.1),
    )
    group = TrajectoryGroup(group_id=9, prompt=prompt, trajectories=(trajectory,))
    return ScoredGroup(group=group, terms=(terms,))


def write(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def character_ids(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_a_group_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = scored_group()
    line = json.dumps(group_as_json(written), ensure_ascii=False).replace("NaN", "null")
    path = tmp_path / "groups.jsonl"
    path.write_text(f"{line}\n\n", encoding="utf-8")

    [filed] = read_groups(path, task_name="chains", tokenise=character_ids)

    assert filed.where == f"{path}:1"
    group, [trajectory] = filed.scored.group, filed.scored.group.trajectories
    assert (group.group_id, group.prompt.prompt_id, group.prompt.task) == (9, "test/7", "chains")
    assert group.prompt.token_ids.tolist() == [1, 2]
    assert trajectory.text == written.group.trajectories[0].text
    assert trajectory.token_ids.tolist() == [1, 2, 5, 6, 7]
    assert trajectory.is_sampled.tolist() == [False, False, True, True, True]
    assert trajectory.finish_reason == "length"
    assert trajectory.sampled_policy_versions.tolist() == [3, 3, 4]
    assert trajectory.logprobs[:4].tolist() == [0.0, 0.0, -0.5, -0.25]
    assert math.isnan(trajectory.logprobs[4])
    verdict, certainty = filed.scored.terms[0]
    assert (verdict.scorer, verdict.status, verdict.reason) == ("verifier", "invalid", "timeout")
    assert (certainty.scorer, certainty.status, certainty.value) == ("self_certainty", "ok", 1.25)


def test_plain_text_is_tokenised_and_has_no_rewards(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", PLAIN)
    [filed] = read_groups(path, task_name="chains", tokenise=character_ids)
    group = filed.scored.group
    assert group.prompt.prompt_id == "mine.jsonl:1"
    assert group.prompt.token_ids.tolist() == [49, 43, 49, 58]
    assert [trajectory.sampled_token_ids.tolist() for trajectory in group.trajectories][1] == []
    assert [trajectory.token_ids.tolist() for trajectory in group.trajectories][1] == [49, 43, 49, 58]
    assert [trajectory.finish_reason for trajectory in group.trajectories] == ["stop", "stop"]
    assert filed.scored.terms == ((), ())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1, 2], "given '[1, 2]', expected one JSON object"),
        ({}, "given 'no completions', expected a list with at least one completion"),
        (PLAIN | {"completions": []}, "given 'completions = []'"),
        (PLAIN | {"completions": ["#2", 3]}, "given 'no prompt_token_ids'"),
        (FULL | {"completions": [*FULL["completions"], "#2"]}, "expected texts throughout, or objects throughout"),
        (PLAIN | {"reference_answer": 2}, "given 'reference_answer = 2', expected a text"),
        (PLAIN | {"prompt": ""}, "given 'prompt = \"\"', expected at least one token"),
        (FULL | {"prompt_token_ids": [3, -4]}, "given 'prompt_token_ids = [3, -4]', expected a list of integers"),
        (FULL | {"prompt_token_ids": [True]}, "expected a list of integers"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, record: object, message: str) -> None:
    path = write(tmp_path / "groups.jsonl", PLAIN, record)
    with pytest.raises(ConfigError) as raised:
        read_groups(path, task_name="chains", tokenise=character_ids)
    assert str(raised.value).startswith(f"{path}:2: given ")
    assert message in str(raised.value)
    assert "Fix: fix this line" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "given 'completions[0].text = null', expected a text"),
        ({"finish_reason": "eos"}, 'expected "stop" or "length"'),
        ({"rewards": {"verifier": "yes"}}, "expected a number, or null where it is invalid"),
        ({"rewards": [1]}, "given 'completions[0].rewards = [1]', expected an object"),
        ({"logprobs": [-0.1]}, "expected a list of 2 numbers, one for each sampled token"),
        ({"sampled_spans": [[0, 3]]}, "a list of [start, end) pairs that ascend within 1 and 3"),
        ({"sampled_spans": [[1, 4]]}, "a list of [start, end) pairs that ascend within 1 and 3"),
        ({"sampled_spans": [[2, 3], [1, 2]]}, "a list of [start, end) pairs that ascend within 1 and 3"),
        ({"sampled_spans": [1, 3]}, "a list of [start, end) pairs that ascend within 1 and 3"),
        ({"policy_versions": [0, 1], "policy_version_starts": [0]}, "a start for each of policy_versions"),
    ],
)
def test_a_bad_completion_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    completion = {"text": "#2", "token_ids": [3, 5, 1], "sampled_spans": [[1, 3]], "finish_reason": "stop"}
    path = write(tmp_path / "groups.jsonl", FULL | {"completions": [completion | change]})
    with pytest.raises(ConfigError) as raised:
        read_groups(path, task_name="chains", tokenise=character_ids)
    assert str(raised.value).startswith(f"{path}:1: given ")
    assert message in str(raised.value)


def test_a_line_that_was_cut_off_and_an_empty_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps(FULL) + "\n" + json.dumps(FULL)[:-20])
    with pytest.raises(ConfigError, match=r"groups.jsonl:2: .*expected one JSON object \(.* at column \d+\)"):
        read_groups(path, task_name="chains", tokenise=character_ids)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="given 'no line', expected at least one line"):
        read_groups(path, task_name="chains", tokenise=character_ids)
    with pytest.raises(ConfigError, match="absent.jsonl: given 'No such file or directory'"):
        read_groups(tmp_path / "absent.jsonl", task_name="chains", tokenise=character_ids)
