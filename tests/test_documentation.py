"""Every command in the documentation can be given: it exists, knows its options, and its configuration is valid."""

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from system.cli import COMMANDS, main
from system.config.load import load_config, split_inputs, split_resume
from system.config.reference import config_keys, reference_markdown

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "deploy" / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# what a reader fills in, and a value for it
PLACEHOLDERS = {"SEED": "0", "REWARD": "intuitor", "{progress,barl}": "progress", "[": "", "]": ""}
WITH_CONFIGURATION = ("train", "evaluate", "select", "certainty-report")
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


def test_there_are_commands_to_check() -> None:
    commands = _all_commands()
    assert len(commands) > 25
    assert "credence train configs/demo.yaml run.seed=1 rollout.num_workers=2" in commands


@pytest.mark.parametrize("command", _all_commands())
def test_a_documented_command_can_be_given(command: str, capsys: pytest.CaptureFixture[str]) -> None:
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
        assert split_resume(arguments[arguments.index("--resume") + 1])[0].startswith("runs/")
        assert all(word.partition("=")[0] in config_keys() for word in inputs)
    elif name in WITH_CONFIGURATION and inputs:
        paths, overrides = split_inputs(inputs)
        load_config([REPOSITORY / path for path in paths], overrides, check_devices=False)


def test_the_dry_run_of_the_readme_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    command = next(command for command in _commands(PAGES[0]) if command.endswith("--dry-run"))
    assert main(shlex.split(command)[1:]) == 0
    assert "Placement on Ray on this machine" in capsys.readouterr().out


def test_the_reference_of_the_configuration_is_current() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == reference_markdown() + "\n", "credence config --markdown > docs/configuration.md"
