from pathlib import Path

import numpy as np
import pytest

from system.data.file_stamps import FileStamp
from system.data.prompts import PromptCursor
from system.errors import CheckpointError
from system.runtime.checkpoint import CheckpointStore, load_run_state
from system.runtime.ledger import Ledger
from tests.runtime.saved_states import make_state, save


def test_saved_state_comes_back_whole(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)

    state = load_run_state(save(store, 3))

    assert state.policy_version == 3
    assert state.cursor == PromptCursor(num_visits=5, num_skipped=1)
    assert state.completion_tokens == 77
    assert state.seconds == 1.5
    assert state.guards == make_state(policy_version=3).guards
    np.testing.assert_array_equal(state.outstanding[1].token_ids, [3, 1, 2])
    assert state.outstanding[1].prompt_id == "train/00001@4"
    assert state.ledger["in_flight"] == [1]
    assert Ledger.restore(state.ledger).totals(in_flight=1).is_balanced


def test_unfinished_checkpoint_is_neither_listed_nor_left(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    save(store, 10)
    (store.partial_directory(20) / "half").write_text("x")

    assert store.latest().name == "update_000010"
    store.discard_partial()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update_000010"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for version in (5, 10, 15):
        save(store, version)

    assert [path.name for path in store.complete()] == ["update_000010", "update_000015"]


def test_a_deletion_that_was_interrupted_leaves_no_checkpoint_that_is_not_whole(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, keep_best=1)
    save(store, 5, accuracy=0.5).rename(tmp_path / "checkpoints" / "update_000005.deleted")
    (save(store, 10, accuracy=0.9) / "state.json").write_text("{")  # damaged
    assert [path.name for path in store.complete()] == ["update_000010"]

    save(store, 15, accuracy=0.1)

    assert [path.name for path in store.complete()] == ["update_000015"]
    assert store.best() == ("update_000015", 0.1)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.json", "update_000015"]


def test_saving_a_version_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    (save(store, 5) / "old").write_text("x")

    save(store, 5)

    assert not (tmp_path / "checkpoints" / "update_000005" / "old").exists()


def test_no_checkpoint_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Start it again without --resume"):
        CheckpointStore(tmp_path, keep=2).latest()


def test_damaged_state_names_the_file(tmp_path: Path) -> None:
    path = save(CheckpointStore(tmp_path, keep=2), 5)
    (path / "state.json").write_text('{"policy_version": 5')

    with pytest.raises(CheckpointError, match=r"state\.json cannot be read"):
        load_run_state(path)


@pytest.mark.parametrize("name", ["state.json", "learner/part.pt", "scorer/average"])
def test_every_flipped_byte_is_noticed(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    file = save(store, 5) / name
    content = file.read_bytes()
    for position in range(len(content)):
        file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(CheckpointError, match=name):
            store.open(None)
    file.write_bytes(content)
    assert store.open(None)[1].policy_version == 5


def test_a_bad_checkpoint_names_the_file_and_the_command_that_uses_the_newest_whole_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=4)
    for version in (5, 10, 15, 20):
        save(store, version)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "update_000020" / "learner" / "part.pt").write_bytes(b"cut")
    (checkpoints / "update_000015" / "learner" / "part.pt").unlink()

    with pytest.raises(CheckpointError) as caught:
        store.open(None)
    assert str(caught.value) == (
        f"{checkpoints}/update_000020/learner/part.pt has 3 bytes, but 100 were saved. "
        f"The newest whole checkpoint is update_000010: credence train --resume {tmp_path}@10"
    )
    with pytest.raises(CheckpointError, match=r"update_000015/learner/part\.pt cannot be read \(No such file"):
        store.open(15)


def test_a_state_of_another_policy_version_is_refused(tmp_path: Path) -> None:
    path = save(CheckpointStore(tmp_path, keep=2), 5)
    moved = path.rename(path.with_name("update_000006"))

    with pytest.raises(CheckpointError, match="is of policy version 5, but lies in update_000006"):
        load_run_state(moved)


def test_an_older_checkpoint_can_be_chosen_and_newer_ones_are_set_aside(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for version in (5, 10, 15):
        save(store, version)

    checkpoint, state = store.open(5)
    newer = store.set_newer_aside(checkpoint)

    assert state.policy_version == 5
    assert [path.name for path in newer] == ["update_000010", "update_000015"]
    assert [path.name for path in store.complete()] == ["update_000005"]
    assert (tmp_path / "checkpoints" / "update_000015.superseded" / "state.json").exists()
    with pytest.raises(CheckpointError, match=r"finished checkpoints of the updates 5\."):
        store.open(12)


def test_a_part_that_this_node_does_not_see_leaves_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    directory = store.partial_directory(5)
    elsewhere = {str(directory / "learner" / "rank_1.pt"): FileStamp(bytes=7, sha256="0" * 64)}

    with pytest.raises(
        CheckpointError, match=r"rank_1\.pt was written by a learner rank, but .* sees nothing of its 7"
    ):
        store.commit(directory, make_state(policy_version=5), written=elsewhere)
    assert store.complete() == []


def test_the_best_are_kept_besides_the_newest_and_the_first_of_them_is_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, keep_best=2)
    for version, accuracy in [(1, 0.2), (2, 0.8), (3, 0.5), (4, 0.8), (5, float("nan")), (6, None), (7, 0.1)]:
        save(store, version, accuracy=accuracy)

    assert [path.name for path in store.complete()] == ["update_000002", "update_000004", "update_000007"]
    assert store.best() == ("update_000004", 0.8)  # of equals the newer one
    assert store.newest_whole().path.name == "update_000007"

    store.set_newer_aside(store.open(2)[0])
    assert store.best() == ("update_000002", 0.8)


def test_without_keep_best_none_is_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save(store, 1, accuracy=0.9)
    save(store, 2, accuracy=0.1)

    assert [path.name for path in store.complete()] == ["update_000002"]
    assert store.best() is None


def test_the_newest_whole_checkpoint_is_found_behind_bad_ones(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=4)
    for version in (5, 10, 15):
        save(store, version)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "update_000015" / "learner" / "part.pt").write_bytes(b"cut")
    (checkpoints / "update_000010" / "state.json").unlink()

    newest = store.newest_whole()

    assert newest.path.name == "update_000005"
    assert newest.state.policy_version == 5
    assert [path.name for path in newest.faults] == ["update_000015", "update_000010"]
    assert "part.pt has 3 bytes, but 100 were saved" in newest.faults[checkpoints / "update_000015"]

    (checkpoints / "update_000005" / "scorer" / "average").unlink()
    with pytest.raises(CheckpointError, match=r"part\.pt has 3 bytes.*No checkpoint of this run is whole"):
        store.newest_whole()
