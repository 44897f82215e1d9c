"""Checkpoints of a run: a folder is either complete under its final name, or it is not there.

    RUN_DIR/checkpoints/update_000050.partial/      while it is written
    RUN_DIR/checkpoints/update_000050/              state.json, learner/ (DeepSpeed), policy/ (Hugging Face format),
                                                    scorer/ (average or past weights of the scoring replicas)
    RUN_DIR/checkpoints/update_000050.superseded/   left behind when the run was resumed from an older one
    RUN_DIR/checkpoints/update_000050.corrupt/      not whole when the run was resumed
    RUN_DIR/checkpoints/update_000050.deleted/      while it is deleted
    RUN_DIR/checkpoints/best.json                   which checkpoint has the best evaluation (checkpoint.keep_best)

state.json is written last. It holds the run state, the size and hash of every other file, and a hash of itself;
all of them are checked before anything is loaded.

Written by checkpoint_writing.py; read by `credence train --resume` and `credence evaluate`.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from system.data.file_stamps import FileStamp, faults, stamp_files, sync_folder, write_synced
from system.data.json_values import JsonValue
from system.data.prompts import PromptCursor
from system.errors import CheckpointError
from system.records import Prompt
from system.reports.guards import GuardState
from system.reports.recorder import write_json_atomically
from system.runtime.ledger import LedgerState

_STATE_FILE = "state.json"
_BEST_FILE = "best.json"
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
    evaluation: dict[str, float] | None = None  # metrics of the evaluation of these weights; None: there was none


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestWhole:
    """The newest checkpoint that is whole, and what is wrong with the newer ones, newest first."""

    path: Path
    state: RunState
    faults: dict[Path, str]


class CheckpointStore:
    """The checkpoints of one run. `partial_directory` and `commit` bracket the writing of a new one."""

    def __init__(
        self, run_directory: Path, *, keep: int, keep_best: int = 0, best_metric: str = "eval/accuracy_greedy"
    ) -> None:
        """Kept are the newest `keep`, and of those whose weights were evaluated the `keep_best` best."""
        self._directory = run_directory / "checkpoints"
        self._keep = keep
        self._keep_best = keep_best
        self._best_metric = best_metric

    def partial_directory(self, policy_version: int) -> Path:
        """An empty folder to write into; nothing reads it before `commit`."""
        directory = self._directory / f"update_{policy_version:06d}.partial"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def commit(self, directory: Path, state: RunState, *, written: Mapping[str, FileStamp]) -> Path:
        """Write the run state last, give the folder its final name, and delete those that need not be kept.

        `written`: what the learner ranks wrote, by path. Raises CheckpointError when this node does not see it.
        """
        files = {str(Path(path).relative_to(directory)): stamp for path, stamp in written.items()}
        here = [path for path in directory.rglob("*") if path.is_file()]
        sizes = {str(path.relative_to(directory)): path.stat().st_size for path in here}
        for name, stamp in files.items():
            if sizes.get(name) != stamp["bytes"]:
                raise CheckpointError(
                    f"{directory / name} was written by a learner rank, but the controller's node sees "
                    f"{sizes.get(name, 'nothing')} of its {stamp['bytes']} bytes. Fix: run.directory on a file system "
                    "that all nodes share"
                )
        others = stamp_files(path for path in here if str(path) not in written)
        files |= {str(Path(path).relative_to(directory)): stamp for path, stamp in others.items()}
        write_synced(directory / _STATE_FILE, _render(_to_json(state), files=files))
        for folder in (path for path in (directory, *directory.rglob("*")) if path.is_dir()):
            sync_folder(folder)
        final = directory.with_suffix("")
        if final.exists():
            _rename(final, suffix=".deleted")
        directory.rename(final)
        sync_folder(self._directory)
        best = self._write_best()
        for old in self.complete()[: -self._keep]:
            if old not in best:
                # a name of its own first: a run may be killed in the middle of deleting
                _rename(old, suffix=".deleted")
        for deleted in self._directory.glob("update_*.deleted"):
            shutil.rmtree(deleted)
        return final

    def discard_partial(self) -> list[Path]:
        """Remove what interrupted saves and deletions left behind; the saves that were not finished."""
        unfinished = sorted(self._directory.glob("update_*.partial"))
        for directory in (*unfinished, *self._directory.glob("update_*.deleted")):
            shutil.rmtree(directory, ignore_errors=True)
        return unfinished

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

    def open(self, policy_version: int | None) -> tuple[Path, RunState]:
        """The checkpoint of a policy version (None: the newest) with its state, every file of it checked.

        Raises CheckpointError, which names the first file that is not as it was saved and the newest checkpoint that
        is whole.
        """
        latest = self.latest()
        chosen = latest if policy_version is None else self._directory / f"update_{policy_version:06d}"
        if chosen not in self.complete():
            there = ", ".join(str(_version(path)) for path in self.complete())
            raise CheckpointError(f"{chosen} is not there; this run has finished checkpoints of the updates {there}.")
        try:
            return chosen, load_run_state(chosen)
        except CheckpointError as error:
            raise CheckpointError(f"{error}. {self._advice(but=chosen)}") from error

    def newest_whole(self) -> NewestWhole:
        """The checkpoint from which a run goes on that was asked for no other. Raises CheckpointError without one."""
        self.latest()
        found: dict[Path, str] = {}
        for path in reversed(self.complete()):
            try:
                return NewestWhole(path=path, state=load_run_state(path), faults=found)
            except CheckpointError as error:
                found[path] = str(error)
        newest = next(iter(found.values()))
        raise CheckpointError(f"{newest}. No checkpoint of this run is whole: start it again without --resume.")

    def set_newer_aside(self, checkpoint: Path, *, suffix: str = ".superseded") -> list[Path]:
        """Rename those newer than `checkpoint`, from which the run goes on: they belong to another continuation."""
        newer = [path for path in self.complete() if _version(path) > _version(checkpoint)]
        for path in newer:
            _rename(path, suffix=suffix)
        if newer:
            self._write_best()
        return newer

    def best(self) -> tuple[str, float] | None:
        """Name of the checkpoint whose evaluation was best and its value; None when none is kept for that."""
        try:
            content = json.loads((self._directory / _BEST_FILE).read_text())
            return content["checkpoint"], content["value"]
        except FileNotFoundError:
            return None

    def _write_best(self) -> list[Path]:
        """Names the best in best.json; those that are kept for being among the best, best first, newer before older."""
        valued = []
        for path in self.complete() if self._keep_best else []:
            value = _evaluation(path).get(self._best_metric, math.nan)
            if math.isfinite(value):
                valued.append((value, path))
        best = sorted(valued, reverse=True)[: self._keep_best]
        if best:
            content: dict[str, JsonValue] = {
                "checkpoint": best[0][1].name,
                "metric": self._best_metric,
                "value": best[0][0],
            }
            write_json_atomically(self._directory / _BEST_FILE, content)
        else:
            (self._directory / _BEST_FILE).unlink(missing_ok=True)
        return [path for _, path in best]

    def _advice(self, *, but: Path) -> str:
        for path in reversed([path for path in self.complete() if path != but]):
            try:
                load_run_state(path)
            except CheckpointError:
                continue
            return (
                f"The newest whole checkpoint is {path.name}: "
                f"credence train --resume {self._directory.parent}@{_version(path)}"
            )
        return "No other checkpoint of this run is whole: start it again without --resume."


def _rename(checkpoint: Path, *, suffix: str) -> None:
    aside = checkpoint.with_suffix(suffix)
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def _evaluation(checkpoint: Path) -> dict[str, float]:
    """Its metrics; none of a checkpoint that was not evaluated or cannot be read."""
    try:
        return json.loads((checkpoint / _STATE_FILE).read_text())["state"]["evaluation"] or {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _version(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("update_"))


def checkpoint_directory(run_folder: Path, *, policy_version: int) -> Path:
    """Where the finished checkpoint of a policy version lies, if there is one."""
    return run_folder / "checkpoints" / f"update_{policy_version:06d}"


def learner_directory(checkpoint: Path) -> Path:
    return checkpoint / "learner"


def policy_directory(checkpoint: Path) -> Path:
    return checkpoint / "policy"


def scorer_directory(checkpoint: Path) -> Path:
    return checkpoint / "scorer"


def load_run_state(checkpoint: Path) -> RunState:
    """The state of a checkpoint whose files are all as they were saved.

    Raises CheckpointError with the first file that is missing, cut off or changed.
    """
    path = checkpoint / _STATE_FILE
    try:
        text = path.read_text()
        data = json.loads(text)
        state, files = data["state"], data["files"]
        if text != _render(state, files=files):
            raise CheckpointError(f"{path} has other content than was saved")
        loaded = _from_json(state)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as a run state: {error!r}") from error
    if loaded.policy_version != _version(checkpoint):
        raise CheckpointError(f"{path} is of policy version {loaded.policy_version}, but lies in {checkpoint.name}")
    for fault in faults(files, folder=checkpoint):
        raise CheckpointError(fault)
    return loaded


def _render(state: dict[str, object], *, files: Mapping[str, FileStamp]) -> str:
    """The text of state.json, the same for the same content: comparing it notices any change."""
    content = {"files": files, "state": state}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=1, sort_keys=True) + "\n"


def _from_json(data: dict[str, Any]) -> RunState:
    return RunState(
        policy_version=data["policy_version"],
        cursor=PromptCursor(**data["cursor"]),
        ledger=data["ledger"],
        outstanding={int(group_id): _prompt(prompt) for group_id, prompt in data["outstanding"].items()},
        completion_tokens=data["completion_tokens"],
        seconds=data["seconds"],
        canary_max_abs_diff=data["canary_max_abs_diff"],
        guards=data["guards"],
        evaluation=data["evaluation"],
    )


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
        "evaluation": state.evaluation,
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
