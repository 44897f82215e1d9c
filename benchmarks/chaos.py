"""A run whose rollout workers are killed and stopped at random moments, while they join, generate or receive weights.

    python benchmarks/chaos.py [--workers 1] [--kills 20] [--stops 5] [--seconds 900] [--seed 0]

SIGKILL is a worker that dies, SIGSTOP one that hangs. The run has to end well at run.max_seconds with a balanced ledger
and without a process left. The last line is JSON; the seed is in it. Also run, in a short form, by tests/integration.
"""

import argparse
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
ACTOR = "ray::RolloutWorker"
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
    "checkpoint.every_updates=null",
    "rollout.cpus_per_worker=0.25",
    "rollout.max_restarts=1000",
    "rollout.group_timeout_seconds=15",
    "rollout.start_timeout_seconds=90",
    "weight_sync.timeout_seconds=20",
    "tracker.wandb_mode=disabled",
]


def run_chaos(
    directory: Path,
    *,
    num_workers: int,
    num_kills: int,
    num_stops: int,
    seconds: float,
    seed: int,
    num_updates: int = 100_000,
    fault_seconds: float | None = None,
    first_update: int = 0,
) -> dict[str, Any]:
    """What the run's summary says, and what was done to it. Raises RuntimeError when the run does not end well.

    Faults are spread over `fault_seconds` (default: most of `seconds`), which begin with the first worker, or when
    update `first_update` is done.
    """
    rng = random.Random(seed)
    faults = [signal.SIGKILL] * num_kills + [signal.SIGSTOP] * num_stops
    rng.shuffle(faults)
    moments = sorted(rng.uniform(0.0, fault_seconds or FAULT_SHARE * seconds) for _ in faults)
    has_begun = functools.partial(_has_made, directory / "chaos" / "metrics.jsonl", first_update)
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "system", "train", "configs/demo.yaml", *OVERRIDES),
                *(f"rollout.num_workers={num_workers}", f"run.max_seconds={seconds}", f"run.directory={directory}"),
                f"run.num_updates={num_updates}",
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            delivered = _deliver(process, faults=faults, moments=moments, rng=rng, has_begun=has_begun)
            family = _family(process.pid)
            code = process.wait(seconds + EXIT_SECONDS)
            _, left = psutil.wait_procs(family, timeout=10.0)
        finally:
            for member in _family(process.pid):
                member.kill()
            process.wait(30)
    if code != 0:
        raise RuntimeError(f"seed {seed}: the run ended with {code}:\n{log.read_text(errors='replace')[-4000:]}")
    summary: dict[str, Any] = json.loads((directory / "chaos" / "summary.json").read_text())
    return {
        "seed": seed,
        "num_workers": num_workers,
        "kills": delivered[signal.SIGKILL],
        "stops": delivered[signal.SIGSTOP],
        "num_updates": summary["num_updates"],
        "ledger_balanced": summary["ledger_balanced"],
        "ledger": summary["ledger"],
        "num_processes_left": sum(1 for member in left if member.is_running()),
    }


def _has_made(metrics: Path, num_updates: int) -> bool:
    return num_updates == 0 or (metrics.exists() and len(metrics.read_text().splitlines()) > num_updates)


def _deliver(
    process: "subprocess.Popen[bytes]",
    *,
    faults: list[signal.Signals],
    moments: list[float],
    rng: random.Random,
    has_begun: Callable[[], bool],
) -> dict[signal.Signals, int]:
    """Send each fault at its moment to a rollout worker, or as soon as there is one; how many of each were sent."""
    delivered = {signal.SIGKILL: 0, signal.SIGSTOP: 0}
    start = None
    for fault, moment in zip(faults, moments, strict=True):
        while process.poll() is None:
            workers = _rollout_workers(process.pid)
            start = start or (time.monotonic() if workers and has_begun() else None)
            if workers and start is not None and time.monotonic() - start >= moment:
                worker = rng.choice(workers)
                print(f"{time.monotonic() - start:6.1f} s: {fault.name} to {worker.pid}", flush=True)
                worker.send_signal(fault)
                delivered[fault] += 1
                break
            time.sleep(0.2)
    return delivered


def _family(pid: int) -> list[psutil.Process]:
    """The run and all its descendants that are alive."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _rollout_workers(pid: int) -> list[psutil.Process]:
    """Actors of the run that can still be hit, also those that are starting."""
    return [member for member in _family(pid) if _is_rollout_worker(member)]


def _is_rollout_worker(process: psutil.Process) -> bool:
    try:
        is_live = process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_STOPPED)
        return is_live and ACTOR in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = run_chaos(
            Path(directory),
            num_workers=arguments.workers,
            num_kills=arguments.kills,
            num_stops=arguments.stops,
            seconds=arguments.seconds,
            seed=arguments.seed,
        )
    print(json.dumps({"benchmark": "chaos"} | figures))
    if not figures["ledger_balanced"] or figures["num_processes_left"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
