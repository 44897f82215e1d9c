"""Files are whole or absent, a resumed file continues at its checkpoint, sampled groups are bounded."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from system.records import Prompt, RewardTerm, ScoredGroup, TrajectoryGroup
from system.reports.recorder import (
    JsonLinesFile,
    Recorder,
    describe_versions,
    read_json_lines,
    write_json_atomically,
    write_text_atomically,
)
from tests.trajectories import single_turn


def scored_group(group_id: int) -> ScoredGroup:
    prompt = Prompt(
        prompt_id=f"p{group_id}", token_ids=np.array([1, 2], np.int32), text="1+1:", reference_answer="2", task="chains"
    )
    trajectory = single_turn(
        [5, 6], prompt=[1, 2], text="1+1=2", logprobs=[-0.5, -0.25], versions=[3, 4], version_starts=[0, 1]
    )
    verdict = RewardTerm(scorer="verifier", value=1.0, status="ok", reason="equal", policy_version=-1, seconds=0.1)
    timeout = RewardTerm(scorer="code", value=0.0, status="invalid", reason="timeout", policy_version=-1, seconds=5.0)
    group = TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=(trajectory,))
    return ScoredGroup(group=group, terms=((verdict, timeout),))


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json_atomically(path, {"step": 1, "loss": math.nan})
    assert json.loads(path.read_text()) == {"step": 1, "loss": None}
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "\ud800")  # a lone surrogate cannot be written
    assert json.loads(path.read_text())["step"] == 1


def test_resumed_lines_continue_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonLinesFile(path, keep_until_version=None) as lines:
        for version in range(4):
            lines.append({"policy_version": version, "value": version / 3})
    whole = path.read_text().splitlines()
    path.write_text("\n".join(whole) + '\n{"policy_version": 4, "val')  # a crash in the middle of a line
    with JsonLinesFile(path, keep_until_version=2) as lines:
        lines.append({"policy_version": 3, "value": "again"})
    assert path.read_text().splitlines()[:3] == whole[:3]
    assert [record["policy_version"] for record in read_json_lines(path)] == [0, 1, 2, 3]
    assert read_json_lines(path)[-1]["value"] == "again"


def test_new_run_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"policy_version": 0}\n')
    JsonLinesFile(path, keep_until_version=None).close()
    assert path.read_text() == ""
    assert read_json_lines(tmp_path / "absent.jsonl") == []


def test_sampled_groups_are_bounded_and_complete(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, groups_per_update=2, max_rollout_files=3)
    for version in range(5):
        recorder.record_groups([scored_group(id_) for id_ in (9, 7, 8)], policy_version=version)
    files = sorted((tmp_path / "rollouts").iterdir())
    assert [file.name for file in files] == ["00000002.jsonl", "00000003.jsonl", "00000004.jsonl"]
    records = read_json_lines(files[0])
    assert [record["group_id"] for record in records] == [7, 8]
    assert records[0]["completions"] == [
        {
            "index": 0,
            "text": "1+1=2",
            "rewards": {"verifier": 1.0, "code": None},
            "reasons": {"verifier": "equal", "code": "timeout"},
            "finish_reason": "stop",
            "policy_version_starts": [0, 2, 3],
            "policy_versions": [-1, 3, 4],
            "token_ids": [1, 2, 5, 6],
            "sampled_spans": [[2, 4]],
            "logprobs": [-0.5, -0.25],
        }
    ]


def test_config_and_environment_are_written(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write_config("run:\n  seed: 3\n")
    recorder.write_versions()
    assert (tmp_path / "config.yaml").read_text() == "run:\n  seed: 3\n"
    environment = json.loads((tmp_path / "versions.json").read_text())
    assert environment["versions"]["numpy"] == np.__version__
    assert environment["python"].startswith("3.")
    commit = describe_versions()["git_commit"]
    assert commit is None or len(str(commit)) == 40
