"""The temporary folder: a long one is replaced by a short one that can be written to, or refused in one line."""

import os
import tempfile
from pathlib import Path

import pytest

from system.errors import ConfigError
from system.runtime.temporary_folder import MAX_BYTES, use_short_temporary_folder


@pytest.fixture
def long_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_a_long_folder_is_replaced_by_the_first_short_one_for_children_too(long_folder: Path) -> None:
    assert use_short_temporary_folder(("/nowhere", "/tmp")) == "/tmp"
    assert os.environ["TMPDIR"] == "/tmp"
    assert tempfile.gettempdir() == "/tmp"
    assert use_short_temporary_folder() is None


def test_a_short_folder_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert use_short_temporary_folder(()) is None
    assert MAX_BYTES == 39


def test_without_a_short_folder_one_line_says_what_to_do(long_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^TMPDIR: given '.*x', expected a writable folder of at most 39 bytes, .*"):
        use_short_temporary_folder(("/nowhere",))
