"""`credence replay`: computes a recorded update again, on one machine, and prints what differs.

    terms        by the scorers, in their sandbox and with the weights that scored
    credit       from the recorded terms
    batch        from the recorded credit
    metrics      from the recorded batch, with the weights that were trained

Each part starts from what was recorded, so that a difference shows where it arises and not in all that follows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from system.commands.replay.findings import Finding, NotComputed
from system.config.load import config_from_dict, flatten, load_config
from system.config.schema import Config, Device
from system.data.json_values import JsonValue
from system.data.step_files import StepFile, config_digest
from system.errors import ConfigError, RecordError
from system.reports.recorder import finite

if TYPE_CHECKING:
    from system.runtime.flight_recorder import RingEntry


_WIDTH = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a replay found."""

    update: int
    policy_version: int  # of the weights that were trained
    state: str
    num_groups: int
    num_completions: int
    config_digest: str
    changed_keys: list[str]  # of config.yaml since this step
    findings: list[Finding]
    not_computed: list[NotComputed]

    @property
    def is_reproduced(self) -> bool:
        return all(finding.is_reproduced for finding in self.findings)


def main(arguments: Sequence[str]) -> int:
    """Replay, or list what is recorded; returns 0 when all is as recorded, else 1. Raises ConfigError, RecordError."""
    parser = argparse.ArgumentParser(
        prog="credence replay",
        description="Compute rewards, advantages, packing and loss of a recorded update again and print what differs. "
        "Exit code 0: all as recorded, 1: something differs. Without --step: what is recorded.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    parser.add_argument(
        "--step", metavar="N", type=int, help="the update, as in metrics.jsonl; it trains version N - 1"
    )
    parser.add_argument("--skipped", action="store_true", help="the batch whose gradient was not finite at that update")
    parser.add_argument(
        "--model", metavar="FOLDER", type=Path, help="weights of version N - 1, where no checkpoint has them"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where the model runs; default: as in the run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if options.model is not None and not (options.model / "config.json").is_file():
        raise ConfigError(
            "--model",
            given=str(options.model),
            expected="a model folder that holds config.json",
            fix="e.g. the folder policy of a checkpoint",
        )
    entries = _entries(options.run_dir)
    if options.step is None:
        _print_entries(entries, run_folder=options.run_dir, as_json=options.json)
        return 0
    entry = _choose(entries, update=options.step, is_skipped=options.skipped, run_folder=options.run_dir)
    found = replay(entry, run_folder=options.run_dir, model=options.model, device=options.device)
    _print(found, as_json=options.json)
    return 0 if found.is_reproduced else 1


def replay(entry: RingEntry, *, run_folder: Path, model: Path | None, device: Device | None) -> Replay:
    """Every part of a recorded step that can be computed again here. Raises RecordError, ConfigError."""
    from system.commands.replay.batch import credit_again, packing_again
    from system.commands.replay.loss import metrics_again
    from system.commands.replay.rewards import policy_scores_again, rules_again
    from system.commands.replay.weights import WeightsFinder
    from system.commands.run_inputs import make_algorithm
    from system.config.algorithms import evidence_of
    from system.data.tasks import make_task

    file = StepFile(entry.path)
    config = config_from_dict(file.config)
    evidence = evidence_of(config.algorithm)
    step, result = file.step(evidence=evidence.record if evidence is not None else None), file.result()
    finder = WeightsFinder(run_folder, config=config, given=model, given_version=step.policy_version)
    findings = rules_again(step.groups, config=config)
    scores = policy_scores_again(step.groups, config=config, finder=finder, device=device)
    credit, not_credited = credit_again(
        step, algorithm=make_algorithm(config, task=make_task(config.task)), config=config
    )
    packing, not_packed = packing_again(step, config=config)
    metrics = metrics_again(step, result, config=config, finder=finder, device=device)
    not_measured = [metrics] if isinstance(metrics, NotComputed) else []
    return Replay(
        update=entry.update,
        policy_version=step.policy_version,
        state=entry.state,
        num_groups=len(step.groups),
        num_completions=sum(len(scored.group.trajectories) for scored in step.groups),
        config_digest=config_digest(file.config),
        changed_keys=_changed_keys(config, run_folder=run_folder),
        findings=[
            *findings,
            *scores.findings,
            *credit,
            *packing,
            *([] if isinstance(metrics, NotComputed) else metrics),
        ],
        not_computed=[*scores.not_computed, *not_credited, *not_packed, *not_measured],
    )


def _entries(run_folder: Path) -> list[RingEntry]:
    from system.runtime.flight_recorder import ring

    if not (run_folder / "config.yaml").is_file():
        raise ConfigError(
            "RUN_DIR",
            given=str(run_folder),
            expected="a run folder, which holds config.yaml",
            fix="give the folder that the run printed, e.g. runs/demo",
        )
    entries = ring(run_folder)
    if not entries:
        raise RecordError(
            f"{run_folder} has no recorded update: it has not trained yet, or ran with run.flight_recorder_steps=0"
        )
    return entries


def _choose(entries: Sequence[RingEntry], *, update: int, is_skipped: bool, run_folder: Path) -> RingEntry:
    """The file of an update: the one that was trained rather than one that was pending when the run ended."""
    states = ("skipped",) if is_skipped else ("trained", "pending")
    chosen = {entry.state: entry for entry in entries if entry.update == update and entry.state in states}
    for state in states:
        if state in chosen:
            return chosen[state]
    there = ", ".join(_name(entry) for entry in sorted(entries, key=lambda entry: entry.update))
    raise RecordError(
        f"update {update}{' (skipped)' if is_skipped else ''} is not recorded in {run_folder}; these are: {there}. "
        "run.flight_recorder_steps says how many are kept"
    )


def _name(entry: RingEntry) -> str:
    return str(entry.update) if entry.state == "trained" else f"{entry.update} ({entry.state})"


def _changed_keys(config: Config, *, run_folder: Path) -> list[str]:
    """A run that was resumed may have changed some."""
    now, then = flatten(load_config([run_folder / "config.yaml"], check_devices=False)), flatten(config)
    return [key for key, value in now.items() if then[key] != value]


def _print_entries(entries: Sequence[RingEntry], *, run_folder: Path, as_json: bool) -> None:
    sizes = {entry.path: entry.path.stat().st_size for entry in entries}
    if as_json:
        rows = [{"update": each.update, "state": each.state, "bytes": sizes[each.path]} for each in entries]
        print(json.dumps(rows, indent=2))
        return
    for entry in sorted(entries, key=lambda entry: entry.update):
        print(f"update {_name(entry)}: {sizes[entry.path] / 1e6:.2f} MB, {entry.path}")
    print(f"credence replay {run_folder} --step {max(entry.update for entry in entries)}")


def _print(found: Replay, *, as_json: bool) -> None:
    if as_json:
        content: dict[str, JsonValue] = asdict(found)
        findings = [asdict(each) | {"is_reproduced": each.is_reproduced} for each in found.findings]
        content |= {"findings": findings, "is_reproduced": found.is_reproduced}
        print(json.dumps(finite(content), indent=2))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not console.is_terminal:  # nobody's window to fit into
        console.width = _WIDTH
    console.print(
        f"update {found.update} ({found.state}) on the weights of policy version {found.policy_version}: "
        f"{found.num_groups} groups, {found.num_completions} completions, configuration {found.config_digest[:12]}"
    )
    if found.state == "pending":
        console.print("the run ended while it trained this batch: the learner's metrics were not recorded")
    if found.changed_keys:
        console.print(f"config.yaml is of a later session: it differs in {', '.join(found.changed_keys)}")
    console.print(_table(found.findings))
    for part in found.not_computed:
        console.print(f"not computed: {part.what}: {part.reason}")
    different = [finding.what for finding in found.findings if not finding.is_reproduced]
    console.print(f"DIFFERENT: {', '.join(different)}" if different else "all that was computed is as recorded")


def _table(findings: Sequence[Finding]) -> Table:
    table = Table()
    for title in ("what", "values", "recorded", "again", "largest difference", "allowed", "where", ""):
        table.add_column(title, overflow="fold", no_wrap=title == "what")
    for finding in findings:
        table.add_row(
            finding.what,
            f"{finding.num_compared:,}",
            finding.recorded,
            finding.again,
            f"{finding.largest_difference:.3g}",
            finding.tolerance,
            finding.where,
            "" if finding.is_reproduced else f"{finding.num_different:,} differ",
        )
    return table
