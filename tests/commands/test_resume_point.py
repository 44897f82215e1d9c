"""From where a run goes on, and what it says about what it cannot use."""

import json
from pathlib import Path

import pytest

from system.commands.resume_point import open_resumed
from system.errors import CheckpointError
from system.runtime.checkpoint import CheckpointStore
from tests.runtime.saved_states import save


def log_updates(run_folder: Path, last: int) -> None:
    lines = (json.dumps({"policy_version": version, "metrics": {}}) for version in range(last + 1))
    (run_folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_a_whole_newest_one_is_used_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 5)
    path = save(store, 10)
    log_updates(tmp_path, 10)

    checkpoint, state = open_resumed(store, policy_version=None, run_folder=tmp_path)

    assert (checkpoint, state.policy_version) == (path, 10)
    assert capsys.readouterr() == ("", "")


def test_a_corrupt_newest_one_is_named_the_one_before_is_used_and_the_loss_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    whole = save(store, 5)
    part = save(store, 10) / "learner" / "part.pt"
    part.write_bytes(b"cut")
    log_updates(tmp_path, 12)

    checkpoint, state = open_resumed(store, policy_version=None, run_folder=tmp_path)

    assert (checkpoint, state.policy_version) == (whole, 5)
    assert capsys.readouterr().err.splitlines() == [
        f"credence: update_000010 cannot be used ({part} has 3 bytes, but 100 were saved), and is set aside as "
        "update_000010.corrupt",
        "credence: going on from update_000005: the 7 updates that the run made after it are made again",
    ]
    assert [path.name for path in store.complete()] == ["update_000005"]
    assert (tmp_path / "checkpoints" / "update_000010.corrupt").is_dir()


def test_an_unfinished_one_is_named_and_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 5)
    store.partial_directory(10)
    log_updates(tmp_path, 10)

    checkpoint, _ = open_resumed(store, policy_version=None, run_folder=tmp_path)

    assert checkpoint.name == "update_000005"
    assert capsys.readouterr().err.splitlines() == [
        "credence: update_000010 was not finished when the run ended, and is deleted",
        "credence: going on from update_000005: the 5 updates that the run made after it are made again",
    ]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update_000005"]


def test_a_corrupt_one_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 5)
    (save(store, 10) / "learner" / "part.pt").write_bytes(b"cut")

    with pytest.raises(CheckpointError, match=r"The newest whole checkpoint is update_000005: credence train --resume"):
        open_resumed(store, policy_version=10, run_folder=tmp_path)
    assert [path.name for path in store.complete()] == ["update_000005", "update_000010"]
