"""One update of a run in one file: what it trained on, what came of it, and the configuration that it ran under.

    update_000123.npz   record.json   configuration, and the step without its arrays
                        *.npy         the arrays, a column for each field of a record (record_columns.py)
                        result.json   the learner's metrics; added when the update is done
                        the end       SHA-256 of everything before it

A zip archive that numpy.load opens as well. Nothing in it is a pickle: reading executes nothing. Written by
system/runtime/flight_recorder.py, read by `credence replay`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from system.algorithms.base import GroupCredit
from system.data.file_stamps import sync_folder
from system.data.record_columns import AnyArray, Columns, from_columns, to_columns
from system.errors import RecordError
from system.records import ScoredGroup, StepResult, TrainingBatch

_FORMAT = 1
_RECORD, _RESULT, _ARRAY_SUFFIX = "record.json", "result.json", ".npy"
_DIGEST_BYTES = 64  # hexadecimal, as the archive's comment: that is its end
_COMPRESSION_LEVEL = 1  # a tenth larger than level 6, in a quarter of its time
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedStep:
    """What one update trained on. Its number is `policy_version` + 1, as in metrics.jsonl."""

    policy_version: int  # of the weights that it trained
    groups: tuple[ScoredGroup, ...]
    credit: tuple[GroupCredit, ...]  # as the groups
    batch: TrainingBatch


def write_step(path: Path, step: RecordedStep, *, config: Mapping[str, object], evidence: type | None) -> None:
    """Write a step whose result is not there yet, whole or not at all, and bring it to disk.

    `config`: section -> key -> plain value. `evidence`: the dataclass of what the algorithm asked of each group; None
    leaves that out. Raises OSError, TypeError for evidence that cannot be stored.
    """
    tree, columns = to_columns(step, RecordedStep, opaque=evidence)
    record = {"format": _FORMAT, "config": config, "dtypes": columns.dtypes, "step": tree}
    temporary = path.with_name(f".{path.name}.tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION_LEVEL) as archive:
        archive.writestr(_RECORD, json.dumps(record))
        for name, array in columns.arrays.items():
            archive.writestr(name + _ARRAY_SUFFIX, _array_bytes(array))
        archive.comment = b"0" * _DIGEST_BYTES
    seal(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def add_result(path: Path, result: StepResult) -> None:
    """What came of the step, in place. Raises OSError."""
    tree, _ = to_columns(result, StepResult, opaque=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION_LEVEL) as archive:
        archive.writestr(_RESULT, json.dumps(tree))
        archive.comment = b"0" * _DIGEST_BYTES
    seal(path)


class StepFile:
    """A file whose content is what was written."""

    def __init__(self, path: Path) -> None:
        """Raises RecordError for a file that cannot be read, was changed, or is of another format."""
        self.path = path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RecordError(f"{path} cannot be read ({error.strerror})") from error
        if hashlib.sha256(content[:-_DIGEST_BYTES]).hexdigest().encode() != content[-_DIGEST_BYTES:]:
            raise RecordError(f"{path} has other content than was written: it was damaged or cut off")
        self._archive = zipfile.ZipFile(io.BytesIO(content))
        self._record: dict[str, Any] = json.loads(self._archive.read(_RECORD))
        if self._record["format"] != _FORMAT:
            raise RecordError(
                f"{path} has the format {self._record['format']}, but this version of credence reads {_FORMAT}: "
                "replay it with the version that wrote it (versions.json in the run folder)"
            )

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """Section -> key -> plain value, as the step ran under."""
        config: dict[str, dict[str, Any]] = self._record["config"]
        return config

    def step(self, *, evidence: type | None) -> RecordedStep:
        """The step; `evidence` is the dataclass that it was written with. Raises RecordError."""
        step: RecordedStep = self._decoded(self._record["step"], RecordedStep, evidence=evidence)
        return step

    def result(self) -> StepResult | None:
        """What came of the step; None: the run ended while it was trained. Raises RecordError."""
        if _RESULT not in self._archive.namelist():
            return None
        tree = json.loads(self._archive.read(_RESULT))
        result: StepResult = self._decoded(tree, StepResult, evidence=None)
        return result

    def _decoded(self, tree: Any, kind: type, *, evidence: type | None) -> Any:
        try:
            columns = self._columns() if kind is RecordedStep else Columns(arrays={}, dtypes={})
            return from_columns(tree, kind, columns=columns, opaque=evidence)
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"{self.path} does not fit the records of this version of credence ({error!r}): replay it with the "
                "version that wrote it (versions.json in the run folder)"
            ) from error

    def _columns(self) -> Columns:
        """Raises ValueError for an array of anything but numbers."""
        names = [name for name in self._archive.namelist() if name.endswith(_ARRAY_SUFFIX)]
        arrays = {name.removesuffix(_ARRAY_SUFFIX): _array(self._archive.read(name)) for name in names}
        return Columns(arrays=arrays, dtypes=self._record["dtypes"])


def config_digest(config: Mapping[str, object]) -> str:
    """SHA-256 of a configuration, in hexadecimal; the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def seal(path: Path) -> None:
    """Put the digest of a file in the place of its last bytes, and bring it to disk."""
    digest = hashlib.sha256()
    with path.open("r+b") as file:
        left = path.stat().st_size - _DIGEST_BYTES
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            digest.update(chunk)
            left -= len(chunk)
        file.seek(-_DIGEST_BYTES, os.SEEK_END)
        file.write(digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())


def _array_bytes(array: AnyArray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _array(content: bytes) -> AnyArray:
    array: AnyArray = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array
