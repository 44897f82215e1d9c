"""The layers of the repository: import-linter's contracts in pyproject.toml hold and cover every module."""

import tomllib
from pathlib import Path

import pytest
from importlinter.application.use_cases import lint_imports
from importlinter.configuration import configure

REPOSITORY = Path(__file__).parents[1]
PYPROJECT = REPOSITORY / "pyproject.toml"


def _contracts() -> dict[str, dict[str, object]]:
    with PYPROJECT.open("rb") as stream:
        contracts = tomllib.load(stream)["tool"]["importlinter"]["contracts"]
    return {contract["id"]: contract for contract in contracts}


@pytest.mark.parametrize("contract", _contracts())
def test_import_contract_holds(
    contract: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    configure()
    is_kept = lint_imports(str(PYPROJECT), limit_to_contracts=(contract,), cache_dir=None, no_logo=True)
    assert is_kept, capsys.readouterr().out


def test_every_module_of_system_belongs_to_a_layer() -> None:
    layers = _contracts()["layers"]["layers"]
    assert isinstance(layers, list)
    named = {name.strip(" ()\n") for layer in layers for part in layer.split(":") for name in part.split("|")}
    modules = {
        f"system.{path.stem}"
        for path in (REPOSITORY / "system").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    }
    assert modules <= named, f"name {sorted(modules - named)} in a layer of pyproject.toml, [tool.importlinter]"
