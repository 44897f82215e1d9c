"""Size and SHA-256 of the files of a checkpoint: taken by whoever wrote a file, checked before anything reads it.

Used by the learner and the scoring replicas when they save, and by system/runtime/checkpoint.py.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

_NUM_THREADS = 8  # hashing and reading both release the interpreter


class FileStamp(TypedDict):
    """What a file must be again when it is read."""

    bytes: int
    sha256: str


def stamp_files(paths: Iterable[Path]) -> dict[str, FileStamp]:
    """By path. Each file is on disk when this returns: the node that wrote a file is the one that can sync it."""
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        files = sorted(paths)
        return dict(zip(map(str, files), threads.map(_synced_stamp, files), strict=True))


def faults(stamps: Mapping[str, FileStamp], *, folder: Path) -> Iterator[str]:
    """One line for each file of `stamps` (paths relative to `folder`) that is missing, cut off or changed."""
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        found = threads.map(lambda name: _fault(folder / name, expected=stamps[name]), sorted(stamps))
        yield from (fault for fault in found if fault is not None)


def write_synced(path: Path, text: str) -> None:
    """Write a small file and bring it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring names that were made, changed or removed in `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _synced_stamp(path: Path) -> FileStamp:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _stamp(path)


def _stamp(path: Path) -> FileStamp:
    with path.open("rb") as file:
        return FileStamp(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _fault(path: Path, *, expected: FileStamp) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path} has {size:,} bytes, but {expected['bytes']:,} were saved"
        if _stamp(path) != expected:
            return f"{path} has other content than was saved"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None
