"""Rows of a text task: JSON lines or Parquet from disk, or a hub data set by name. Used by the text tasks."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from system.config.machine import data_file
from system.errors import ConfigError
from system.interfaces import Split

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row of a file that cannot be used."""

    place: str  # "line 3" of JSON lines, else "row 3"
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReport:
    """What was read from one file or data set, and what was left out and why."""

    origin: str
    num_rows: int
    num_problems: int
    counts: tuple[tuple[str, int], ...]  # by remark: rows that were left out for a known reason, or read in another way
    bad_rows: tuple[BadRow, ...]

    def lines(self) -> list[str]:
        """For the terminal; none where every row was read as it stands."""
        if not self.counts and not self.bad_rows:
            return []
        remarks = [f"{number} {remark}" for remark, number in self.counts]
        if self.bad_rows:
            first = self.bad_rows[0]
            remarks.append(
                f"{len(self.bad_rows)} malformed, left out (first: {first.place}, expected {first.expected})"
            )
        return [f"{self.origin}: {self.num_problems} problems from {self.num_rows} rows; {'; '.join(remarks)}"]


def read_rows(path: str, *, key: str, expected: str) -> list[Row | BadRow]:
    """All rows of a .jsonl or .parquet file. Raises ConfigError that names `key` when it cannot be read as such."""
    file = data_file(path, key=key)
    rows = _read_parquet(file, key=key) if file.suffix == ".parquet" else _read_json_lines(file)
    if not rows:
        raise ConfigError(key, given=f"{path} without a row", expected=expected, fix=f"point {key} at such a file")
    return rows


def _read_json_lines(path: Path) -> list[Row | BadRow]:
    rows: list[Row | BadRow] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:  # also UnicodeDecodeError
                rows.append(BadRow(place=f"line {number}", expected=f"one JSON object a line in UTF-8 ({error})"))
                continue
            rows.append(
                row
                if isinstance(row, dict)
                else BadRow(place=f"line {number}", expected="one JSON object a line, this is no JSON object")
            )
    return rows


def _read_parquet(path: Path, *, key: str) -> list[Row | BadRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(
            key, given=str(path), expected=f"a Parquet file ({error})", fix="write the file anew or use .jsonl"
        ) from error


def load_hub_rows(dataset: str, *, split: Split) -> list[Row | BadRow]:
    """Rows of a hub data set, `name` or `name:configuration`. Raises ConfigError (`task.dataset`) when it fails."""
    import datasets

    name, _, configuration = dataset.partition(":")
    try:
        return list(datasets.load_dataset(name, configuration or None, split=split))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ConfigError(
            "task.dataset",
            given=dataset,
            expected=f"a data set with a split {split!r}, as `name` or `name:configuration` ({error})",
            fix="correct the name, or give task.train_path and task.test_path",
        ) from error


def text_field(row: Row, names: Sequence[str]) -> str | None:
    """The first of the named fields that holds text or a number, as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return str(int(value)) if float(value).is_integer() else str(value)
    return None
