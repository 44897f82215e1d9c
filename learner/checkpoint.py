"""The learner's part of a checkpoint.

The caller gives an empty temporary folder and renames it when all ranks have written; a folder seen under its final
name is complete. All ranks call these functions with the same folder, on a file system that they share.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from learner.deepspeed_engine import DeepSpeedEngine
from system.errors import CheckpointError

_STATE_FILE = "learner.json"


@dataclass(frozen=True, kw_only=True)
class LearnerState:
    """What DeepSpeed does not keep, and what a resume has to know or must not change."""

    policy_version: int
    num_ranks: int
    zero_stage: int
    dtype: str
    num_skipped_in_a_row: int


def capture_checkpoint(
    directory: str, *, engine: DeepSpeedEngine, state: LearnerState, rank: int
) -> Callable[[], Sequence[Path]]:
    """Copies this rank's state into host memory; what is returned writes it (rank 0: and `state`) at any later time."""
    folder = Path(directory)
    copy = engine.host_copy()

    def write() -> Sequence[Path]:
        files = copy.write(folder)
        if rank == 0:
            path = folder / _STATE_FILE
            path.write_text(json.dumps(asdict(state), indent=2) + "\n")
            files.append(path)
        return files

    return write


def load_checkpoint(directory: str, *, engine: DeepSpeedEngine, expected: LearnerState) -> LearnerState:
    """Restores the engine and returns the saved state; ranks and ZeRO stage may differ from those that saved.

    Raises CheckpointError when the folder is incomplete, or was saved at another policy version or precision than
    `expected`.
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
    if state.dtype != expected.dtype:
        raise CheckpointError(
            f"{directory} was saved with learner.dtype={state.dtype}, but the configuration says {expected.dtype}. "
            f"Fix: resume with learner.dtype={state.dtype}, or start a new run from an export of the weights"
        )
    engine.load(directory, num_files=state.num_ranks)
    return state
