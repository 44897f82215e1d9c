"""Every command in the documentation can be given: it exists, knows its options, and its configuration is valid."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from system.cli import COMMANDS, main
from system.commands.metrics_reference import all_metrics, metrics_markdown
from system.config.algorithms import built_in_algorithms
from system.config.load import load_config, split_inputs, split_resume
from system.config.reference import config_keys, reference_markdown
from system.metrics import MetricTable
from tests.tiny_policies import make_policy

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "deploy" / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# what a reader fills in, and a value for it
PLACEHOLDERS = {"SEED": "0", "REWARD": "intuitor", "{progress,barl}": "progress", "[": "", "]": ""}
WITH_CONFIGURATION = ("train", "evaluate", "select", "certainty-report", "doctor")
_FILE = re.compile(r"^```\w+ title=(\S+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^(credence|make|python -m|\.venv/bin/credence|ray job submit)\b")


def _commands(page: Path) -> Iterator[str]:
    """Commands of code blocks, continued lines joined and comments left out, and those between backticks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    in_block = False
    for line in text.splitlines():
        if line.startswith("```"):
            in_block = not in_block
        elif in_block or line.startswith("    "):
            command = re.sub(r"\s+#\s.*", "", line.strip())
            if _COMMAND.match(command):
                yield command
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for quoted in re.findall(r"`([^`]+)`", prose):
        command = " ".join(quoted.split())
        if _COMMAND.match(command):
            yield command


def _all_commands() -> list[str]:
    return sorted({command for page in PAGES for command in _commands(page)})


def _words(command: str) -> list[str]:
    if not command.endswith("..."):
        for placeholder, value in PLACEHOLDERS.items():
            command = command.replace(placeholder, value) if "terms=" not in command else command
    return shlex.split(command)


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a reader who wrote down the files of the README."""
    for name, content in _FILE.findall(PAGES[0].read_text(encoding="utf-8")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def test_there_are_commands_to_check() -> None:
    commands = _all_commands()
    assert len(commands) > 25
    assert "credence train configs/demo.yaml run.seed=1 rollout.num_workers=2" in commands


@pytest.mark.parametrize("command", _all_commands())
def test_a_documented_command_can_be_given(
    command: str, readers_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = _words(command)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
        assert words[1] in targets
        return
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :] if "--" in words else []
    if words[:2] == ["python", "-m"] and words[2] != "system":
        assert find_spec(words[2]) is not None
        return
    words = words[3:] if words[:1] == ["python"] else words[1:]
    if words and words != ["..."]:
        _check_arguments(words[0], arguments=words[1:], capsys=capsys)


def _check_arguments(name: str, *, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert name in COMMANDS or name.startswith("-")
    if not arguments:
        return
    with pytest.raises(SystemExit):
        main([name, "--help"])
    options = capsys.readouterr().out
    assert all(word in options for word in arguments if word.startswith("--"))
    inputs = [word for word in arguments if "=" in word or word.endswith(".yaml")]
    if name in WITH_CONFIGURATION and "--resume" in arguments:
        assert split_resume(arguments[arguments.index("--resume") + 1])[0].startswith(("runs/", "RUN_DIR"))
        assert all(word.partition("=")[0] in config_keys() for word in inputs)
    elif name in WITH_CONFIGURATION and inputs:
        paths, overrides = split_inputs(inputs)
        load_config(paths, overrides, check_devices=False)


DRY_RUNS = [command for command in _commands(PAGES[0]) if "--dry-run" in command and command != "--dry-run"]


@pytest.mark.parametrize("command", DRY_RUNS)
def test_a_dry_run_of_the_readme_runs(command: str, readers_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)[1:]) == 0
    output = capsys.readouterr().out
    assert "Placement on Ray on this machine" in output
    if "my_run.yaml" in command:
        assert "train                3 problems of my_" in output


@pytest.mark.integration
@pytest.mark.timeout(400)
def test_the_readers_own_reward_task_and_algorithm_train_a_model(readers_folder: Path) -> None:
    model = make_policy(readers_folder / "model", is_tied=True)
    keys = {
        "model.path": model,
        "task.name": "my_tasks:Sums",
        "task.train_path": "my_sums.jsonl",
        "task.test_path": "my_sums.jsonl",
        "reward.terms": '[{scorer: verifier}, {scorer: "my_rewards:FewWords", weight: 0.1}]',
        "algorithm.name": "my_algorithms:BatchBaseline",
        "run.num_updates": 2,
        "batch.completions_per_prompt": 4,
        "batch.tokens_per_microbatch": 1024,
        "rollout.max_prompt_tokens": 256,
        "rollout.max_completion_tokens": 64,
        "evaluation.num_problems_final": 2,
        "evaluation.completions_per_problem_final": 2,
        "tracker.wandb_mode": "disabled",
    }
    arguments = [f"{key}={value}" for key, value in keys.items()]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "system", "train", "my_run.yaml", *arguments],
        cwd=readers_folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    lines = [json.loads(line) for line in (readers_folder / "runs/my-run/metrics.jsonl").read_text().splitlines()]
    assert [line["policy_version"] for line in lines] == [0, 1, 2]
    assert "reward/few_words_mean" in lines[-1]["metrics"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    folders = "system|actors|learner|configs|docs|deploy|tests|benchmarks"
    named = re.findall(rf"`((?:{folders})/(?:[\w./-]*(?:/|\.\w+))?)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_metrics_that_a_page_names_exist(page: Path) -> None:
    table = MetricTable(all_metrics())
    areas = {definition.name.partition("/")[0] for definition in table.definitions()}
    named = set(re.findall(r"`([a-z_]+/[a-z0-9_<>]+)`", page.read_text(encoding="utf-8")))
    named = {name for name in named if name.partition("/")[0] in areas and not (REPOSITORY / name).exists()}
    declared = {definition.name for definition in table.definitions()}
    declared |= {
        algorithm.figure.metric for algorithm in built_in_algorithms().values() if algorithm.figure is not None
    }
    families = [definition for definition in table.definitions() if "<" in definition.name]
    unknown = {name for name in named - declared if not any(family.matches(name) for family in families)}
    assert sorted(unknown) == []


def test_the_glossary_of_metrics_is_current() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == metrics_markdown() + "\n", "credence metrics --markdown > docs/metrics.md"


def test_the_reference_of_the_configuration_is_current() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference_markdown() + "\n", "credence config --markdown > docs/configuration.md"
