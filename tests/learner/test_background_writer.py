"""Files are written beside the caller; what goes wrong is raised where the caller waits, with a name."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from learner.background_writer import BackgroundWriter
from system.errors import CheckpointError


def test_the_caller_goes_on_while_files_are_written_and_gets_their_stamps_when_it_waits(tmp_path: Path) -> None:
    writer = BackgroundWriter(who="learner rank 3")
    may_write = threading.Event()

    def write() -> Sequence[Path]:
        assert may_write.wait(10.0)
        (tmp_path / "part").write_bytes(b"abc")
        return [tmp_path / "part"]

    writer.start([write, list])
    assert not (tmp_path / "part").exists()
    may_write.set()

    stamps = writer.wait()
    assert {path: stamp["bytes"] for path, stamp in stamps.items()} == {str(tmp_path / "part"): 3}
    assert writer.wait() == stamps


def test_nothing_to_wait_for_is_no_error() -> None:
    assert BackgroundWriter(who="learner rank 0").wait() == {}


def test_what_could_not_be_written_is_raised_at_each_wait_with_rank_and_reason(tmp_path: Path) -> None:
    writer = BackgroundWriter(who="learner rank 3")

    def write() -> Sequence[Path]:
        (tmp_path / "absent" / "part").write_bytes(b"abc")
        return []

    writer.start([write])
    writer.settle()
    assert writer.is_done
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"learner rank 3 could not write .*No such file .*absent/part"):
            writer.wait()
