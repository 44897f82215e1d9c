"""Checkpoints of a run: a folder is either complete under its final name, or it is not there.

    RUN_DIR/checkpoints/update_000050.partial/   while it is written
    RUN_DIR/checkpoints/update_000050/           state.json, learner/ (DeepSpeed), policy/ (Hugging Face format),
                                                 scorer/ (average or past weights of the scoring replicas)

Written by the controller; read by `credence train --resume` and `credence evaluate`.
"""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from system.data.prompts import PromptCursor
from system.errors import CheckpointError
from system.records import Prompt
from system.reports.guards import GuardState
from system.runtime.ledger import LedgerState

_STATE_FILE = "state.json"
_NAME = re.compile(r"update_(\d{6,})")


class _PromptState(TypedDict):
    prompt_id: str
    token_ids: list[int]
    text: str
    reference_answer: str
    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Everything besides the learner that a run needs to go on where it was."""

    policy_version: int
    cursor: PromptCursor
    ledger: LedgerState
    outstanding: dict[int, Prompt]  # leased groups that were not trained on, by group id
    completion_tokens: int  # trained on since the start
    seconds: float  # running time since the start, over all sessions
    canary_max_abs_diff: float
    guards: GuardState | None  # what the guards against reward hacking have seen; None: nothing


class CheckpointStore:
    """The checkpoints of one run. `partial_directory` and `commit` bracket the writing of a new one."""

    def __init__(self, run_directory: Path, *, keep: int) -> None:
        self._directory = run_directory / "checkpoints"
        self._keep = keep

    def partial_directory(self, policy_version: int) -> Path:
        """An empty folder to write into; nothing reads it before `commit`."""
        directory = self._directory / f"update_{policy_version:06d}.partial"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def commit(self, directory: Path, state: RunState) -> Path:
        """Write the run state last, give the folder its final name, and delete the oldest beyond `keep`."""
        (directory / _STATE_FILE).write_text(json.dumps(_to_json(state), indent=1))
        final = directory.with_suffix("")
        shutil.rmtree(final, ignore_errors=True)
        directory.rename(final)
        for old in self.complete()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def discard_partial(self) -> None:
        """Remove what an interrupted save left behind."""
        for directory in self._directory.glob("update_*.partial"):
            shutil.rmtree(directory, ignore_errors=True)

    def complete(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(path for path in self._directory.glob("update_*") if _NAME.fullmatch(path.name))

    def latest(self) -> Path:
        """The newest finished checkpoint. Raises CheckpointError when there is none."""
        complete = self.complete()
        if not complete:
            raise CheckpointError(
                f"{self._directory} holds no finished checkpoint: the run ended before checkpoint.every_updates "
                "updates. Start it again without --resume."
            )
        return complete[-1]


def learner_directory(checkpoint: Path) -> Path:
    return checkpoint / "learner"


def policy_directory(checkpoint: Path) -> Path:
    return checkpoint / "policy"


def scorer_directory(checkpoint: Path) -> Path:
    return checkpoint / "scorer"


def load_run_state(checkpoint: Path) -> RunState:
    """Raises CheckpointError when the file is missing or damaged."""
    path = checkpoint / _STATE_FILE
    try:
        data = json.loads(path.read_text())
        return RunState(
            policy_version=data["policy_version"],
            cursor=PromptCursor(**data["cursor"]),
            ledger=data["ledger"],
            outstanding={int(group_id): _prompt(prompt) for group_id, prompt in data["outstanding"].items()},
            completion_tokens=data["completion_tokens"],
            seconds=data["seconds"],
            canary_max_abs_diff=data["canary_max_abs_diff"],
            guards=data["guards"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as a run state: {error!r}. Resume from another one.") from error


def _to_json(state: RunState) -> dict[str, object]:
    return {
        "policy_version": state.policy_version,
        "cursor": state.cursor.as_json(),
        "ledger": state.ledger,
        "outstanding": {group_id: _prompt_state(prompt) for group_id, prompt in state.outstanding.items()},
        "completion_tokens": state.completion_tokens,
        "seconds": state.seconds,
        "canary_max_abs_diff": state.canary_max_abs_diff,
        "guards": state.guards,
    }


def _prompt_state(prompt: Prompt) -> _PromptState:
    return _PromptState(
        prompt_id=prompt.prompt_id,
        token_ids=prompt.token_ids.tolist(),
        text=prompt.text,
        reference_answer=prompt.reference_answer,
        task=prompt.task,
    )


def _prompt(state: _PromptState) -> Prompt:
    token_ids: Sequence[int] = state["token_ids"]
    return Prompt(
        prompt_id=state["prompt_id"],
        token_ids=np.asarray(token_ids, np.int32),
        text=state["text"],
        reference_answer=state["reference_answer"],
        task=state["task"],
    )
