"""`credence doctor`: looks at the machines of a run, as a table of checks; exit code 1 when one of them failed.

    arguments ─> where to look (cluster or this machine), what a run needs ─> examine ─> judge ─> table or JSON

What is looked at, and how it is judged: system/runtime/doctor/.
"""

from __future__ import annotations

import argparse
import json
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from system.commands.plan import checkpoint_bytes, count_parameters, snapshot_bytes
from system.config.load import load_config, split_inputs
from system.config.machine import model_folder, run_directory
from system.config.schema import Config
from system.errors import ConfigError
from system.runtime.doctor.checks import judge
from system.runtime.doctor.examine import examine
from system.runtime.doctor.facts import Needs
from system.runtime.doctor.nodes import ClusterNodes, Nodes, ThisMachine, answers, joined
from system.runtime.doctor.verdicts import Check
from system.runtime.learner_group import num_snapshots
from system.weights.store import node_address

_CLUSTER_FILE = Path("/tmp/ray/ray_current_cluster")  # of the last `ray start` on this machine
_WIDTH = 118


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the arguments ask for. `address` None: this machine alone."""

    address: str | None
    config: Config | None
    folder: Path | None


def main(arguments: Sequence[str]) -> int:
    """Prints the table, or with --json one line; 1 when something failed. Raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog="credence doctor",
        description="Checks every node of a Ray cluster, or this machine alone: versions, shared memory, limits, "
        "ports, a collective, GPU memory of dead processes, the run folder, disk, clocks.",
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="RUN_DIR|CONFIG|key=value", help="the folder of the runs, YAML files, overrides"
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster; else that of the configuration, of RAY_ADDRESS, or one that runs here",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    options = parser.parse_intermixed_args(arguments)
    request = read_request(options.inputs, address=options.address)
    needs = needs_of(request.config, folder=request.folder)
    with _nodes(request.address) as nodes:
        findings = examine(nodes, folder=request.folder)
    checks = judge(findings, needs)
    print(to_json(checks, where=findings.where) if options.json else to_text(checks))
    return int(any(check.status == "FAIL" for check in checks))


def read_request(inputs: Sequence[str], *, address: str | None) -> Request:
    """A folder with a config.yaml is that of a run, and its configuration counts unless another one is given."""
    paths, overrides = split_inputs(inputs)
    folders = [Path(path) for path in paths if Path(path).is_dir()]
    files: list[str | Path] = [path for path in paths if not Path(path).is_dir()]
    if len(folders) > 1:
        raise ConfigError(
            "RUN_DIR", given=" ".join(map(str, folders)), expected="one folder", fix="leave the others out"
        )
    if not files and folders and (folders[0] / "config.yaml").is_file():
        files = [folders[0] / "config.yaml"]
    if overrides and not files:
        raise ConfigError(
            "CONFIG",
            given=" ".join(overrides),
            expected="at least one YAML file before the overrides",
            fix="e.g. credence doctor configs/demo.yaml",
        )
    config = load_config(files, overrides, check_devices=False) if files else None
    folder = folders[0].resolve() if folders else None if config is None else run_directory(config.run)
    if address is None and config is not None and config.cluster.address != "auto":
        address = config.cluster.address
    if address is None or address == "auto":
        address = os.environ.get("RAY_ADDRESS") or running_cluster(_CLUSTER_FILE)
    return Request(address=None if address == "local" else address, config=config, folder=folder)


def running_cluster(file: Path) -> str | None:
    """The address that `ray start` left in `file`, if somebody still answers there."""
    try:
        address = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return address if answers(address) else None


def needs_of(config: Config | None, *, folder: Path | None) -> Needs:
    """What a run of this configuration needs; its sizes are known for a local model."""
    if config is None:
        return Needs(
            folder=folder, snapshot_bytes=None, num_snapshots=2, checkpoint_bytes=None, num_checkpoints=1,
            unknown_because="give a CONFIG to compare with the size of its model",
        )  # fmt: skip
    needs = Needs(
        folder=folder,
        snapshot_bytes=None,
        num_snapshots=num_snapshots(config.scorer),
        checkpoint_bytes=None,
        num_checkpoints=config.checkpoint.keep + 1,
        unknown_because=f"the size of {config.model.path} is not known here",
    )
    model = model_folder(config.model.path)
    num_parameters = None if model is None else count_parameters(model)
    if num_parameters is None:
        return needs
    snapshot = snapshot_bytes(config.learner, num_parameters=num_parameters)
    of_scorers = (needs.num_snapshots - 2) * snapshot  # the average or the past versions, saved as well
    checkpoint = checkpoint_bytes(config.learner, num_parameters=num_parameters) + of_scorers
    return replace(needs, snapshot_bytes=snapshot, checkpoint_bytes=checkpoint)


@contextmanager
def _nodes(address: str | None) -> Iterator[Nodes]:
    if address is None:
        yield ThisMachine(node_address())
        return
    with joined(address):
        yield ClusterNodes(address)


def to_text(checks: Sequence[Check]) -> str:
    """The table: status, name, what was found; below it, where it is not well, what was expected and the fix."""
    lines = []
    for check in checks:
        head = f"{check.status:<6}{check.name:<16}"
        lines += textwrap.wrap(check.found, _WIDTH, initial_indent=head, subsequent_indent=" " * 22)
        for word, text in (("expected", check.expected), ("fix", check.fix)):
            if text:
                lines += textwrap.wrap(f"{word}: {text}", _WIDTH, initial_indent=" " * 22, subsequent_indent=" " * 24)
    counts = {status: sum(check.status == status for check in checks) for status in ("FAIL", "warn")}
    lines.append(f"{counts['FAIL']} failed, {counts['warn']} warnings")
    return "\n".join(lines)


def to_json(checks: Sequence[Check], *, where: str) -> str:
    """The same on one line."""
    is_well = all(check.status != "FAIL" for check in checks)
    return json.dumps({"is_well": is_well, "where": where, "checks": [asdict(check) for check in checks]})
