"""Where things are: an algorithm in one file, a scorer in three at most, and BARL's words nowhere else."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from system.config.algorithms import built_in_algorithms
from system.config.scorers import SCORERS
from system.records import FinishReason

REPOSITORY = Path(__file__).parents[1]
SOURCES = ("system", "actors", "learner")
ALGORITHMS = REPOSITORY / "system" / "algorithms"
# The command that draws beliefs is named after them.
NAMES_THE_COMMAND = {"system/cli.py"}


def _files(*folders: str, suffix: str = ".py") -> Iterator[Path]:
    for folder in folders:
        yield from sorted((REPOSITORY / folder).rglob(f"*{suffix}"))


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def _names(pattern: str, *folders: str, suffix: str = ".py") -> set[str]:
    """The files that the pattern is found in."""
    found = re.compile(pattern)
    return {_name(path) for path in _files(*folders, suffix=suffix) if found.search(path.read_text(encoding="utf-8"))}


def test_beliefs_and_hypotheses_are_spoken_of_in_the_folders_of_barl_only() -> None:
    speaking = _names(r"(?i)belief|hypothes", *SOURCES)
    elsewhere = {name for name in speaking if "barl" not in Path(name).parts} - NAMES_THE_COMMAND
    assert not elsewhere, f"what only BARL needs belongs into a folder barl/: {sorted(elsewhere)}"
    assert speaking - elsewhere, "nothing speaks of beliefs any more: this test looks at nothing"


@pytest.mark.parametrize("name", built_in_algorithms())
def test_an_algorithm_is_one_file_one_configuration_and_one_test(name: str) -> None:
    (own,) = [path for path in ALGORITHMS.rglob("*.py") if path.stem == name]
    named = _names(rf"""["']{name}["']|name={name}\b""", *SOURCES)
    outside = {file for file in named if not (REPOSITORY / file).is_relative_to(ALGORITHMS) and "barl" not in file}
    default = {"system/config/schema.py", "system/commands/completion_source.py"} if name == "grpo" else set()
    assert outside <= default, f"nobody but {_name(own)} knows the algorithm {name}: {sorted(outside - default)}"
    assert _names(rf"name: {name}\b", "configs", suffix=".yaml"), f"a configuration with algorithm.name={name}"
    tests = {path.stem for path in _files("tests/algorithms")}
    assert tests & {f"test_{name}", "test_barl" if name == "progress" else ""}, f"a test of {name}"


@pytest.mark.parametrize("name", [name for name in SCORERS if name not in ("verifier", "self_certainty")])
def test_a_scorer_touches_three_files_at_most(name: str) -> None:
    # The verifier judges evaluations, self-certainty is what certainty reports are about: both are read elsewhere.
    module = SCORERS[name].path.partition(":")[0].rpartition(".")[2]
    quoted = "" if name in get_args(FinishReason) else rf"""["']{name}["']|"""  # "length" is also how a response ends
    touched = _names(rf"{quoted}scorer: {name}\b|rewards[./]{module}\b", *SOURCES)
    touched |= {_name(path) for path in _files(*SOURCES) if path.stem == module and "rewards" in path.parts}
    assert len(touched) <= 3, f"scorer {name} is spread over {sorted(touched)}"
