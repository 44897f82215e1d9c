"""The learner's part of a checkpoint.

The caller gives an empty temporary folder and renames it when all ranks are done; a folder seen under its final
name is complete. All ranks call these functions with the same folder, on a file system that they share.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from learner.deepspeed_engine import DeepSpeedEngine
from system.data.file_stamps import FileStamp, stamp_files
from system.errors import CheckpointError

_STATE_FILE = "learner.json"


@dataclass(frozen=True, kw_only=True)
class LearnerState:
    """What DeepSpeed does not keep, and what must not change between saving and loading."""

    policy_version: int
    num_ranks: int
    zero_stage: int
    dtype: str


def save_checkpoint(directory: str, *, engine: DeepSpeedEngine, state: LearnerState, rank: int) -> dict[str, FileStamp]:
    """Writes parameters, optimizer state (all ranks) and `state` (rank 0); the files of this rank, by path."""
    files = engine.save(directory)
    if rank == 0:
        path = Path(directory) / _STATE_FILE
        path.write_text(json.dumps(asdict(state), indent=2) + "\n")
        files.append(path)
    return stamp_files(files)


def load_checkpoint(directory: str, *, engine: DeepSpeedEngine, expected: LearnerState) -> LearnerState:
    """Restores the engine and returns the saved state.

    Raises CheckpointError when the folder is incomplete, is of another policy version than `expected`, or was written
    with other ranks, ZeRO stage or precision: optimizer shards would not fit.
    """
    path = Path(directory) / _STATE_FILE
    try:
        state = LearnerState(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} holds no learner checkpoint: {_STATE_FILE} is missing") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if state.policy_version != expected.policy_version:
        raise CheckpointError(
            f"{path} is of policy version {state.policy_version}, but the run state says {expected.policy_version}"
        )
    for name in ("num_ranks", "zero_stage", "dtype"):
        saved, wanted = getattr(state, name), getattr(expected, name)
        if saved != wanted:
            raise CheckpointError(
                f"{directory} was saved with learner.{name}={saved}, but the configuration says {wanted}. "
                f"Fix: resume with learner.{name}={saved}, or start a new run from an export of the weights"
            )
    engine.load(directory)
    return state
