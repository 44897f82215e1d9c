"""Whether every node has the versions that were tested together, and the same as the others."""

from collections.abc import Callable, Mapping, Sequence

from system.runtime.doctor.facts import NodeFacts
from system.runtime.doctor.tested_versions import CORE, NEEDED, TESTED_PYTHON, build_of
from system.runtime.doctor.verdicts import Check, bad_or, fail, ok, skip, warn

TestedVersions = Callable[[str], dict[str, str] | None]
_MAX_NAMED = 8


def check_versions(nodes: Sequence[NodeFacts], *, tested: TestedVersions) -> list[Check]:
    """Against the pins. Another version of what is hard to combine fails; others are told in one line."""
    checks: list[Check] = []
    num_pins = 0
    for node in nodes:
        build = build_of(node.packages)
        pins = tested(build)
        if pins is None:
            return [skip("versions", "deploy/requirements is not beside the program: run it in a checkout")]
        num_pins = max(num_pins, len(pins))
        checks += _of_node(node, pins=pins, build=build)
    return bad_or(checks, else_ok=ok("versions", f"{_count(nodes)}: what is installed of {num_pins} pins is as tested"))


def _of_node(node: NodeFacts, *, pins: Mapping[str, str], build: str) -> list[Check]:
    checks = []
    fix = f"pip install --no-deps -r deploy/requirements/{build}.txt"
    if node.python.split(".")[:2] != TESTED_PYTHON.split("."):
        found = f"{node.address}: Python {node.python}"
        checks.append(warn("versions", found, expected=f"Python {TESTED_PYTHON}", fix="that one"))
    missing = [name for name in NEEDED if name in pins and name not in node.packages]
    if missing:
        found = f"{node.address} lacks {', '.join(missing)}"
        checks.append(fail("versions", found, expected=f"all pins of {build}.txt", fix=fix))
    others = {
        name: version for name, version in node.packages.items() if name in pins and not _is_same(version, pins[name])
    }
    core = [name for name in others if name in CORE]
    for name in core:
        found = f"{node.address}: {name} {others[name]}"
        checks.append(fail("versions", found, expected=pins[name], fix=fix))
    rest = [f"{name} {others[name]} (tested: {pins[name]})" for name in sorted(others) if name not in core]
    if rest:
        found = f"{node.address}: {_some(rest)}"
        checks.append(warn("versions", found, expected=f"the pins of {build}.txt", fix=fix))
    return checks


def check_same_versions(nodes: Sequence[NodeFacts]) -> list[Check]:
    """All nodes against the first one."""
    if len(nodes) < 2:
        return [skip("same versions", "one node")]
    first, checks = nodes[0], []
    for node in nodes[1:]:
        differences = [
            f"{name} {node.packages.get(name, 'missing')} and {first.packages.get(name, 'missing')}"
            for name in sorted({*first.packages, *node.packages})
            if node.packages.get(name) != first.packages.get(name)
        ]
        if node.python != first.python:
            differences.insert(0, f"Python {node.python} and {first.python}")
        is_needed = any(difference.split()[0] in (*NEEDED, "Python") for difference in differences)
        if differences:
            kind = fail if is_needed else warn
            found = f"{node.address} and {first.address}: {_some(differences)}"
            checks.append(
                kind("same versions", found, expected="the same on all nodes", fix="install the same file there")
            )
    return bad_or(checks, else_ok=ok("same versions", _count(nodes)))


def _is_same(version: str, pin: str) -> bool:
    """A build of the tested version without a local part (+cpu) is the tested one."""
    return version == pin or (("+" in version) != ("+" in pin) and version.split("+")[0] == pin.split("+")[0])


def _count(nodes: Sequence[NodeFacts]) -> str:
    return f"{len(nodes)} nodes" if len(nodes) > 1 else "1 node"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MAX_NAMED} more" if len(texts) > _MAX_NAMED else ""
    return ", ".join(texts[:_MAX_NAMED]) + more
