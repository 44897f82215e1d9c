"""From which checkpoint a run goes on, and what to tell the user about it. Called by `credence train --resume`."""

import sys
from pathlib import Path

from system.reports.recorder import read_json_lines
from system.runtime.checkpoint import CheckpointStore, RunState


def open_resumed(
    checkpoints: CheckpointStore, *, policy_version: int | None, run_folder: Path
) -> tuple[Path, RunState]:
    """The checkpoint of a policy version, or the newest that is whole, with its state; newer ones are set aside.

    Prints one line for each that cannot be used, and how many updates are lost. Raises CheckpointError.
    """
    unfinished = checkpoints.discard_partial()
    if policy_version is not None:
        checkpoint, state = checkpoints.open(policy_version)
        for newer in checkpoints.set_newer_aside(checkpoint):
            print(f"{newer.name} belongs to another continuation: set aside as {newer.name}.superseded")
        return checkpoint, state
    newest = checkpoints.newest_whole()
    for partial in unfinished:
        if partial.with_suffix("").name > newest.path.name:
            _tell(f"{partial.with_suffix('').name} was not finished when the run ended, and is deleted")
    for path, fault in newest.faults.items():
        _tell(f"{path.name} cannot be used ({fault}), and is set aside as {path.name}.corrupt")
    checkpoints.set_newer_aside(newest.path, suffix=".corrupt")
    num_lost = _last_update(run_folder) - newest.state.policy_version
    if num_lost > 0:
        _tell(f"going on from {newest.path.name}: the {num_lost} updates that the run made after it are made again")
    return newest.path, newest.state


def _last_update(run_folder: Path) -> int:
    """Up to which the metrics of the run go."""
    versions = [record.get("policy_version") for record in read_json_lines(run_folder / "metrics.jsonl")]
    return max((version for version in versions if isinstance(version, int)), default=0)


def _tell(text: str) -> None:
    print(f"credence: {text}", file=sys.stderr)
