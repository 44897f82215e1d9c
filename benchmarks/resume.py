"""A synchronous run that is killed, all its processes at once, at random points and resumed each time.

    python benchmarks/resume.py [--algorithm grpo] [--kills 10] [--seed 0]

SIGKILL to every process of the run, a random number of updates after it was resumed: at a random part of the next one,
and every fifth time while a checkpoint is being written. At the end the metrics of every update and the last checkpoint
(float32 weights, AdamW's state, exported policy, average of the weights) have to be those of a run that nobody
disturbed, bit for bit. Prints a table of the kills; the last line is JSON. Also run, in a short form, by
tests/integration.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.run_processes import kill_family  # noqa: E402

WAIT_SECONDS = 300.0  # for an update, or for the end of a run
KEYS: dict[str, object] = {
    "run.max_seconds": "null",
    "batch.prompts_per_step": 8,
    "batch.completions_per_prompt": 4,
    "batch.tokens_per_microbatch": 1024,
    "evaluation.num_problems": 8,
    "evaluation.num_problems_final": 8,
    "evaluation.completions_per_problem_final": 2,
    "evaluation.every_updates": 4,
    "checkpoint.every_updates": 1,
    "tracker.wandb_mode": "disabled",
}
ALGORITHMS: dict[str, dict[str, object]] = {
    "grpo": {},
    "intuitor": {
        "reward.terms": "[{scorer: verifier, weight: 0}, {scorer: self_certainty}]",
        "scorer.mode": "ema",
        "scorer.ema_decay": 0.5,
        "scorer.cpus_per_worker": 0.25,
        "loss.kl_coefficient": 0.05,
    },
    "barl": {
        "algorithm.name": "barl",
        "algorithm.options.candidates": 3,
        "scorer.cpus_per_worker": 0.25,
    },
}


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When the processes were killed, and what the run had then."""

    when: str  # "update" or "checkpoint"
    update: int  # last line of the metrics
    checkpoint: int  # newest that was complete
    was_writing: bool  # an unfinished checkpoint was left


def run_resume(
    directory: Path, *, keys: Mapping[str, object], num_kills: int, seed: int, reference: Path | None = None
) -> dict[str, Any]:
    """The kills, and the differences between the run and `reference`, or one that is made with the same keys.

    Raises RuntimeError when a session ends in another way than it should.
    """
    rng = random.Random(seed)
    log = directory / "log"
    if reference is None:
        _session(_start_command(keys, directory, name="undisturbed"), log=log).end()
        reference = directory / "undisturbed"
    run = directory / "killed"
    moments = ["checkpoint"] * max(1, num_kills // 5) + ["update"] * num_kills
    moments = moments[:num_kills]
    rng.shuffle(moments)
    update_seconds = _mean_update_seconds(reference)
    kills: list[Kill] = []
    command = _start_command(keys, directory, name="killed")
    for number, when in enumerate(moments, start=1):
        session = _session(command, log=log)
        command = _resume_command(run)
        kills.append(session.kill(run, when=when, rng=rng, update_seconds=update_seconds))
        print(_row(number, kills[-1]), flush=True)
    _session(command, log=log).end()
    return {
        "seed": seed,
        "kills": len(kills),
        "kills_while_writing": sum(kill.was_writing for kill in kills),
        "updates_made_again": sum(kill.update - kill.checkpoint for kill in kills),
        "num_updates": len(_metric_lines(run)) - 1,
        "differences": differences(run, reference),
    }


def differences(run: Path, reference: Path) -> list[str]:
    """Metrics and files of the last checkpoint that are not the same; figures that depend on the clock are left out."""
    found = []
    lines, expected = _metric_lines(run), _metric_lines(reference)
    if [line["policy_version"] for line in lines] != [line["policy_version"] for line in expected]:
        return [f"{len(lines)} lines of metrics, not {len(expected)}"]
    for line, other in zip(lines, expected, strict=True):
        ours, theirs = line["metrics"], other["metrics"]
        names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        found += [f"update {line['policy_version']}: {name}" for name in names]
    last, other_last = _checkpoints(run)[-1], _checkpoints(reference)[-1]
    files, other_files = (_weight_files(path) for path in (last, other_last))
    if not files or files.keys() != other_files.keys():
        found.append(f"the last checkpoint has {sorted(files)}, not {sorted(other_files)}")
    found += [name for name in files if files[name] != other_files.get(name)]
    return found


class _Session:
    """One process of `credence train` with its descendants."""

    def __init__(self, process: "subprocess.Popen[bytes]", *, log: Path) -> None:
        self._process = process
        self._log = log

    def end(self) -> None:
        """Wait for a good end."""
        try:
            code = self._process.wait(WAIT_SECONDS)
        finally:
            self._kill_all()
        if code != 0:
            raise RuntimeError(f"a session ended with {code}:\n{self._log.read_text(errors='replace')[-4000:]}")

    def kill(self, run: Path, *, when: str, rng: random.Random, update_seconds: float) -> Kill:
        """Kill it after one or two updates, in the middle of the next one or of the writing of a checkpoint."""
        try:
            update = _newest_version(run) + rng.randint(1, 2)
            while _newest_version(run) < update:
                self._require_alive(f"before the checkpoint of update {update}")
                time.sleep(0.01)
            if when == "checkpoint":
                while not _is_writing(run):
                    self._require_alive("before its next checkpoint")
                    time.sleep(0.001)
            else:
                time.sleep(rng.uniform(0.0, update_seconds))
            self._require_alive("before it was killed")
        finally:
            self._kill_all()
        return Kill(
            when=when,
            update=max(line["policy_version"] for line in _metric_lines(run)),
            checkpoint=_newest_version(run),
            was_writing=_is_writing(run),
        )

    def _require_alive(self, when: str) -> None:
        if self._process.poll() is not None:
            text = self._log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"a session ended with {self._process.returncode} {when}:\n{text}")

    def _kill_all(self) -> None:
        kill_family(self._process)


def _session(command: Sequence[str], *, log: Path) -> _Session:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "WANDB_MODE": "offline"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return _Session(process, log=log)


def _start_command(keys: Mapping[str, object], directory: Path, *, name: str) -> list[str]:
    given = {**keys, "run.directory": directory, "run.name": name, "controller.max_staleness": 0}
    return [
        *(sys.executable, "-m", "system", "train", "configs/demo.yaml"),
        *(f"{key}={value}" for key, value in given.items()),
    ]


def _resume_command(run: Path) -> list[str]:
    return [sys.executable, "-m", "system", "train", "--resume", str(run)]


def _checkpoints(run: Path) -> list[Path]:
    """Those that have their final name, oldest first."""
    return sorted(path for path in run.glob("checkpoints/update_*") if not path.suffix)


def _newest_version(run: Path) -> int:
    """Of the newest finished checkpoint; 0 without one."""
    return max((int(path.name.removeprefix("update_")) for path in _checkpoints(run)), default=0)


def _is_writing(run: Path) -> bool:
    """Whether there is a checkpoint into which something was written, and that has no final name yet."""
    return any(path.is_file() for path in run.glob("checkpoints/update_*.partial/**/*"))


def _weight_files(checkpoint: Path) -> dict[str, bytes]:
    """What continues the training, by name; state.json also holds running times."""
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*.safetensors")}


def _metric_lines(run: Path) -> list[dict[str, Any]]:
    """The whole lines of the metrics."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _mean_update_seconds(run: Path) -> float:
    seconds = [line["timing"]["time/step_seconds"] for line in _metric_lines(run)[1:]]
    return sum(seconds) / len(seconds)


def _row(number: int, kill: Kill) -> str:
    again = kill.update - kill.checkpoint
    writing = "yes" if kill.was_writing else "no"
    return f"{number:4d}  {kill.when:10s} {kill.update:6d} {kill.checkpoint:10d} {again:10d}  {writing}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=sorted(ALGORITHMS), default="grpo")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    keys = KEYS | ALGORITHMS[arguments.algorithm] | {"run.num_updates": 3 * arguments.kills + 2}
    print("kill  during     update checkpoint made again  writing a checkpoint")
    with tempfile.TemporaryDirectory() as directory:
        figures = run_resume(Path(directory), keys=keys, num_kills=arguments.kills, seed=arguments.seed)
    print(json.dumps({"benchmark": "resume", "algorithm": arguments.algorithm} | figures))
    if figures["differences"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
