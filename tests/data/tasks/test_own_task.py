"""A task of a user's own, named by its import path: one that reads rows, and one that needs none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from system.config.schema import Config
from system.data.tasks import make_task
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.data.tasks.rows import Row
from system.data.tasks.text_task import ParsedRow, TextTask
from system.errors import ConfigError


class Sums(TextTask):
    name = "sums"
    expected_row = "numbers 'a' and 'b'"

    def parse_row(self, row: Row) -> ParsedRow | None:
        if not isinstance(row.get("a"), int) or not isinstance(row.get("b"), int):
            return None
        total = int(str(row["a"])) + int(str(row["b"]))
        return ParsedRow(question=f"{row['a']} + {row['b']}", solution="", reference_answer=str(total))

    def extract_answer(self, response: str) -> str | None:
        return response or None


class Chains(Gsm8kChainsTask):
    def __init__(self, config: object) -> None:
        super().__init__(validation_size=3)


class NoTask:
    def load(self) -> None: ...


def test_a_text_task_of_ones_own_reads_the_rows_of_the_section(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"a": n, "b": 2 * n}) + "\n" for n in range(5)))
    keys = (f"task.train_path={rows}", f"task.test_path={rows}", "task.validation_size=2")
    task = make_task(make_config(f"task.name={__name__}:Sums", *keys).task)
    assert [len(task.load(split)) for split in ("train", "validation", "test")] == [3, 2, 5]
    assert task.load("test")[4].reference_answer == "12"


def test_a_task_that_needs_no_rows_is_made_of_the_section(make_config: Callable[..., Config]) -> None:
    assert len(make_task(make_config(f"task.name={__name__}:Chains").task).load("validation")) == 3


def test_a_class_that_is_no_task_is_refused(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"^task\.name: given '.*NoTask', expected a class with the methods load, "):
        make_task(make_config(f"task.name={__name__}:NoTask").task)
