"""A run whose processes are killed and stopped at random moments, while they start, work or receive weights.

    python benchmarks/chaos.py [--workers 1] [--kills 20] [--stops 5] [--seconds 900] [--seed 0] [--max-staleness 0]
                               [--kinds rollout engine reward verifier learner replica]

SIGKILL is a process that dies, SIGSTOP one that hangs; --kills and --stops are spread evenly over the kinds. The run
has to end well at run.max_seconds with a balanced ledger and without a process left. A table says for each kind how
often it was hit and how long it took until the run's log said so (a verifier's child process is replaced without a
line). The last line is JSON; the seed is in it. Also run, in a short form, by tests/integration.
"""

import argparse
import functools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.run_processes import family_of, kill_family  # noqa: E402

KINDS = {  # what the command line of a process of that kind holds, and the line that tells of its loss
    "rollout": ("ray::RolloutWorker", "lost rollout worker"),
    "engine": ("EngineCore", "lost rollout worker"),
    "reward": ("ray::RewardWorker", "lost reward worker"),
    "verifier": ("", None),
    "replica": ("ray::ScoringWorker", "lost scoring replica"),
    "learner": ("ray::LearnerWorker", "Learner lost"),
}
OF_REPLICAS = [  # the self-certainty scorer, which only looks on
    "reward.terms=[{scorer: verifier}, {scorer: self_certainty, weight: 0}]",
    "scorer.cpus_per_worker=0.25",
    "scorer.max_restarts=1000",
    "scorer.group_timeout_seconds=15",
    "scorer.start_timeout_seconds=90",
]
FAULT_SHARE = 0.8  # of the run's seconds, in which the faults are spread
EXIT_SECONDS = 300.0  # for the last evaluation, the checkpoint and the summary
OVERRIDES = [
    "run.name=chaos",
    "batch.prompts_per_step=8",
    "batch.completions_per_prompt=4",
    "batch.tokens_per_microbatch=1024",
    "evaluation.num_problems=8",
    "evaluation.num_problems_final=8",
    "evaluation.completions_per_problem_final=2",
    "evaluation.every_updates=20",
    "checkpoint.every_updates=5",
    "learner.max_restarts=1000",
    "learner.heartbeat_timeout_seconds=10",
    "learner.step_timeout_seconds=30",
    "reward.max_restarts=1000",
    "reward.group_timeout_seconds=15",
    "rollout.cpus_per_worker=0.25",
    "rollout.max_restarts=1000",
    "rollout.group_timeout_seconds=15",
    "rollout.start_timeout_seconds=90",
    "weight_sync.timeout_seconds=20",
    "tracker.wandb_mode=disabled",
]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is done to a process of one kind, and when it was heard of (None: not before the next fault)."""

    kind: str
    signal: signal.Signals
    seconds_to_detect: float | None = None


def run_chaos(
    directory: Path,
    *,
    num_workers: int,
    num_kills: int,
    num_stops: int,
    seconds: float,
    seed: int,
    kinds: Sequence[str] = ("rollout",),
    max_staleness: int = 0,
    num_updates: int = 100_000,
    fault_seconds: float | None = None,
    first_update: int = 0,
) -> dict[str, Any]:
    """What the run's summary says, and what was done to it. Raises RuntimeError when the run does not end well.

    Faults are spread over `fault_seconds` (default: most of `seconds`), which begin with the first worker, or when
    update `first_update` is done.
    """
    rng = random.Random(seed)
    faults = _spread(signal.SIGKILL, num_kills, kinds) + _spread(signal.SIGSTOP, num_stops, kinds)
    rng.shuffle(faults)
    moments = sorted(rng.uniform(0.0, fault_seconds or FAULT_SHARE * seconds) for _ in faults)
    has_begun = functools.partial(_has_made, directory / "chaos" / "metrics.jsonl", first_update)
    overrides = [*OVERRIDES, *(OF_REPLICAS if "replica" in kinds else ())]
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "system", "train", "configs/demo.yaml", *overrides),
                *(f"rollout.num_workers={num_workers}", f"run.max_seconds={seconds}", f"run.directory={directory}"),
                *(f"run.num_updates={num_updates}", f"controller.max_staleness={max_staleness}"),
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            delivered = _deliver(process, faults=faults, moments=moments, rng=rng, has_begun=has_begun, log=log)
            family = family_of(process.pid)
            code = process.wait(seconds + EXIT_SECONDS)
            _, left = psutil.wait_procs(family, timeout=10.0)
        finally:
            kill_family(process)
    if code != 0:
        raise RuntimeError(f"seed {seed}: the run ended with {code}:\n{log.read_text(errors='replace')[-4000:]}")
    summary: dict[str, Any] = json.loads((directory / "chaos" / "summary.json").read_text())
    of_summary = ("num_updates", "learner_restarts", "ledger_balanced", "ledger")
    return {
        "seed": seed,
        "num_workers": num_workers,
        "max_staleness": max_staleness,
        "kills": sum(1 for fault in delivered if fault.signal is signal.SIGKILL),
        "stops": sum(1 for fault in delivered if fault.signal is signal.SIGSTOP),
        "by_kind": {kind: _of_kind(delivered, kind) for kind in kinds},
        **{name: summary[name] for name in of_summary},
        "num_processes_left": sum(1 for member in left if member.is_running()),
    }


def _spread(number: signal.Signals, num_faults: int, kinds: Sequence[str]) -> list[Fault]:
    return [Fault(kind=kinds[index % len(kinds)], signal=number) for index in range(num_faults)]


def _of_kind(delivered: Sequence[Fault], kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, number in (("kills", signal.SIGKILL), ("stops", signal.SIGSTOP)):
        of_kind = [fault for fault in delivered if (fault.kind, fault.signal) == (kind, number)]
        heard = sorted(fault.seconds_to_detect for fault in of_kind if fault.seconds_to_detect is not None)
        row[name] = len(of_kind)
        row[f"{name}_heard_of"] = len(heard)
        row[f"{name}_median_seconds"] = round(statistics.median(heard), 2) if heard else None
    return row


def _has_made(metrics: Path, num_updates: int) -> bool:
    return num_updates == 0 or (metrics.exists() and len(metrics.read_text().splitlines()) > num_updates)


def _deliver(
    process: "subprocess.Popen[bytes]",
    *,
    faults: Sequence[Fault],
    moments: Sequence[float],
    rng: random.Random,
    has_begun: Callable[[], bool],
    log: Path,
) -> list[Fault]:
    """Do each fault at its moment to a process of its kind, or as soon as there is one; those that were done."""
    delivered: list[Fault] = []
    start: float | None = None
    done_at, read_from = 0.0, 0  # of the last fault, until the run has said that it noticed
    for fault, moment in zip(faults, moments, strict=True):
        while process.poll() is None:
            now = time.monotonic()
            if delivered and delivered[-1].seconds_to_detect is None and _is_heard_of(delivered[-1], log, read_from):
                delivered[-1] = replace(delivered[-1], seconds_to_detect=now - done_at)
            targets = _processes_of(process.pid, fault.kind)
            start = start or (now if targets and has_begun() else None)
            if targets and start is not None and now - start >= moment:
                done_at, read_from = time.monotonic(), log.stat().st_size
                target = rng.choice(targets)
                print(f"{done_at - start:6.1f} s: {fault.signal.name} to {fault.kind} {target.pid}", flush=True)
                target.send_signal(fault.signal)
                delivered.append(fault)
                break
            time.sleep(0.1)
    return delivered


def _is_heard_of(fault: Fault, log: Path, read_from: int) -> bool:
    sign = KINDS[fault.kind][1]
    if sign is None:
        return False
    with log.open("rb") as file:
        file.seek(read_from)
        return sign.encode() in file.read()


def _processes_of(pid: int, kind: str) -> list[psutil.Process]:
    """Processes of the run that can still be hit, also those that are starting."""
    return [member for member in family_of(pid) if _is_of_kind(member, kind)]


def _is_of_kind(process: psutil.Process, kind: str) -> bool:
    try:
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED):
            return False
        if kind == "verifier":  # a child process of a reward worker, whatever its command line
            parent = process.parent()
            return parent is not None and KINDS["reward"][0] in " ".join(parent.cmdline())
        return KINDS[kind][0] in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-staleness", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=["rollout"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = run_chaos(
            Path(directory),
            num_workers=arguments.workers,
            num_kills=arguments.kills,
            num_stops=arguments.stops,
            seconds=arguments.seconds,
            seed=arguments.seed,
            kinds=arguments.kinds,
            max_staleness=arguments.max_staleness,
        )
    print(f"{'kind':<10}{'kills':>6}{'heard of':>10}{'median s':>10}{'stops':>7}{'heard of':>10}{'median s':>10}")
    for kind, row in figures["by_kind"].items():
        cells = [row[f"{name}{what}"] for name in ("kills", "stops") for what in ("", "_heard_of", "_median_seconds")]
        print(f"{kind:<10}{cells[0]:>6}{cells[1]:>10}{cells[2]!s:>10}{cells[3]:>7}{cells[4]:>10}{cells[5]!s:>10}")
    print(json.dumps({"benchmark": "chaos"} | figures))
    if not figures["ledger_balanced"] or figures["num_processes_left"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
