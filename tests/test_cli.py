"""The command line: dispatch, exit codes, dry run and help, in this process unless the process itself is tested."""

import subprocess
import sys
from pathlib import Path

import pytest

from system.cli import COMMANDS, main
from system.config.load import flatten, load_config

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def config_path(tmp_path: Path, minimal_overrides: list[str]) -> str:
    """A file with the minimal valid configuration."""
    sections: dict[str, list[str]] = {}
    for override in minimal_overrides:
        key, _, value = override.partition("=")
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append(f"  {name}: {value}")
    path = tmp_path / "minimal.yaml"
    path.write_text("\n".join(f"{name}:\n" + "\n".join(lines) for name, lines in sections.items()) + "\n")
    return str(path)


def test_dry_run_prints_configuration_derivation_and_placement(
    config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", config_path, "run.seed=7", "--dry-run", "learner.num_ranks=2"]) == 0
    output = capsys.readouterr().out
    assert "seed: 7" in output
    assert "sequences per rank   16 on 2 ranks" in output
    assert "learner rank          2" in output


def test_dry_run_imports_neither_torch_nor_ray(config_path: str) -> None:
    program = (
        "import sys; from system.cli import main;"
        f"assert main(['train', {config_path!r}, '--dry-run']) == 0;"
        "print('imported:', sorted({'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported: []"


def test_resume_dry_run_needs_no_configuration_file(
    tmp_path: Path, config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(Path(config_path).read_text())
    assert main(["train", "--resume", str(run_dir), "run.num_updates=20", "--dry-run"]) == 0
    assert "The run: 20 updates" in capsys.readouterr().out


def test_resume_refuses_a_key_that_would_change_the_training(
    tmp_path: Path, config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(Path(config_path).read_text())
    assert main(["train", "--resume", str(run_dir), "run.seed=5", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("credence: run.seed: given 5, expected 0, as in ")


def test_overrides_without_a_file_ask_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run.seed=1"]) == 2
    assert "credence: CONFIG: given 'run.seed=1', expected at least one YAML file" in capsys.readouterr().err


def test_a_word_without_equals_is_taken_for_a_file(config_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", config_path, "run.seed"]) == 2
    assert "an override is written key=value" in capsys.readouterr().err


def test_a_wrong_override_is_one_line_on_stderr(config_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", config_path, "run.sed=1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_config_lists_every_key(config_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    output = capsys.readouterr().out
    assert all(f"  {key}  (" in output for key in flatten(load_config([config_path])))


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("trian", "did you mean train?"),
        ("certainty_report", "did you mean certainty-report?"),
        ("xyzzy", f"expected one of {', '.join(COMMANDS)}"),
    ],
)
def test_unknown_commands_name_the_near_one_or_all(given: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([given]) == 2
    assert capsys.readouterr().err == f"credence: unknown command {given!r}, {answer}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: credence {name}" in capsys.readouterr().out


def test_a_report_on_nothing_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certainty-report", "nothere"]) == 2
    assert capsys.readouterr().err == (
        "credence: RUN_DIR|FILE|CONFIG: given 'nothere', expected an existing run folder, .jsonl file or YAML file. "
        "Fix: e.g. runs/demo\n"
    )


def test_a_dry_run_of_an_evaluation_says_what_it_would_sample(
    config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", config_path, "--dry-run", "evaluation.num_problems_final=10"]) == 0
    output = capsys.readouterr().out
    assert "at most 10 problems of test, 90 completions (one greedy, 8 sampled each)" in output
    assert "test                 1,179 problems" in output


def _write_rows(path: Path, *, count: int) -> str:
    path.write_text("".join(f'{{"question": "{n} + {n}?", "answer": "#### {2 * n}"}}\n' for n in range(count)))
    return str(path)


def test_a_dry_run_reads_the_rows_and_counts_them(
    config_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = _write_rows(tmp_path / "train.jsonl", count=5), _write_rows(tmp_path / "test.jsonl", count=3)
    keys = ["task.name=gsm8k", f"task.train_path={train}", f"task.test_path={test}", "task.validation_size=2"]
    assert main(["train", config_path, "--dry-run", *keys]) == 0
    output = capsys.readouterr().out
    for line in (f"train                3 problems of {train}", f"validation           2 problems of {train}"):
        assert line in output
    assert f"test                 3 problems of {test}" in output


def test_a_dry_run_refuses_rows_that_are_no_problems(
    config_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = _write_rows(tmp_path / "train.jsonl", count=5), tmp_path / "test.jsonl"
    test.write_text('{"prompt": "1 + 1?"}\n')
    keys = ["task.name=gsm8k", f"task.train_path={train}", f"task.test_path={test}", "task.validation_size=2"]
    assert main(["train", config_path, "--dry-run", *keys]) == 2
    assert capsys.readouterr().err.startswith("credence: task.test_path: given")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "train CONFIG... [key=value...]" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("credence ")
    assert main([]) == 2


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "system", "trian"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "unknown command 'trian'" in done.stderr


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m system config | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "run:\n"
    assert done.stderr == ""
