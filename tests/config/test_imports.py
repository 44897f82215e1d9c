"""Import paths `package.module:Name`: found in the working directory, and refused in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from system.config.imports import import_class, label_of
from system.errors import ConfigError

MODULE = """
class Counts:
    def score(self, group): return []

number = 3
"""


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_rewards_for_a_test.py").write_text(MODULE)
    (tmp_path / "broken_for_a_test.py").write_text("def (:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_class_is_found_in_the_working_directory_and_in_processes_started_later(own_folder: Path) -> None:
    found = import_class("own_rewards_for_a_test:Counts", key="reward.terms", methods=("score",))
    assert found.__name__ == "Counts"
    program = "import own_rewards_for_a_test as own; print(own.number)"
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_here:Thing", r"ModuleNotFoundError.* Fix: the module has to be importable from /"),
        ("own_rewards_for_a_test:Missing", r"AttributeError"),
        ("own_rewards_for_a_test:number", r"package.module:Name, a class"),
        ("own_rewards_for_a_test:Counts", r"a class with the methods score, close. Fix: define close in Counts"),
        ("broken_for_a_test:Thing", r"SyntaxError"),
        ("own_rewards_for_a_test:", r"AttributeError"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(own_folder: Path, path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        import_class(path, key="reward.terms", methods=("score", "close"))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"reward.terms: given '{path}'")


def test_labels_are_words_for_metric_names() -> None:
    assert label_of("self_certainty") == "self_certainty"
    assert label_of("my_package.rewards:ShortAnswers") == "short_answers"
    assert label_of("rewards:BLEU4Score") == "bleu4_score"
