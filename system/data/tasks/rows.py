"""Rows of a text task: JSON lines or Parquet from disk, or a hub data set by name. Used by the text tasks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from system.errors import ConfigError
from system.interfaces import Split

Row = Mapping[str, object]


def read_rows(path: Path, *, key: str, expected: str) -> list[Row]:
    """All rows of a .jsonl or .parquet file. Raises ConfigError that names `key` when it cannot be read as such."""
    fix = f"point {key} at such a file"
    if path.suffix not in {".jsonl", ".parquet"}:
        raise ConfigError(key, given=str(path), expected="a file name that ends in .jsonl or .parquet", fix=fix)
    if not path.is_file():
        raise ConfigError(key, given=str(path), expected="a file that exists", fix=fix)
    rows = _read_parquet(path, key=key) if path.suffix == ".parquet" else _read_json_lines(path, key=key)
    if not rows:
        raise ConfigError(key, given=f"{path} without a row", expected=expected, fix=fix)
    return rows


def _read_json_lines(path: Path, *, key: str) -> list[Row]:
    rows: list[Row] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:  # also UnicodeDecodeError
                raise _malformed(path, number, key=key, problem=str(error)) from error
            if not isinstance(row, dict):
                raise _malformed(path, number, key=key, problem="the line is no JSON object")
            rows.append(row)
    return rows


def _malformed(path: Path, number: int, *, key: str, problem: str) -> ConfigError:
    return ConfigError(
        key,
        given=f"{path}, line {number}",
        expected=f"one JSON object a line in UTF-8 ({problem})",
        fix="fix or remove that line",
    )


def _read_parquet(path: Path, *, key: str) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(
            key, given=str(path), expected=f"a Parquet file ({error})", fix="write the file anew or use .jsonl"
        ) from error


def load_hub_rows(dataset: str, *, split: Split) -> list[Row]:
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
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(int(value)) if float(value).is_integer() else str(value)
    return None
