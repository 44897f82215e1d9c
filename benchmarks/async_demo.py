"""The demo's workload (512 completions an update) asynchronous, against synchronous with one engine and with two.

    async_over_sync = seconds of an asynchronous update / seconds of the faster synchronous one

Three runs of configs/demo.yaml, one after the other because each wants the whole machine: generation, scoring,
training and weight sync, with real engines. An update's time is the median of those behind the warm-up. Run it without
arguments; it takes about four minutes on two cores. The last line is JSON.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NUM_UPDATES = 12
NUM_WARMUP = 3
OVERRIDES = [
    f"run.num_updates={NUM_UPDATES}",
    "run.max_seconds=null",
    "evaluation.every_updates=null",
    "evaluation.num_problems_final=8",
    "evaluation.completions_per_problem_final=1",
    "checkpoint.every_updates=null",
    "tracker.wandb_mode=disabled",
]
RUNS = {
    "sync, 1 engine": ["rollout.num_workers=1"],
    "async": ["controller.max_staleness=2", "rollout.on_new_weights=keep"],
    "sync, 2 engines": ["rollout.num_workers=2"],
}


def measure(folder: Path, *, name: str, overrides: list[str]) -> dict[str, Any]:
    """Medians over the updates of one run."""
    print(f"{name}: {NUM_UPDATES} updates", flush=True)
    arguments = ["train", "configs/demo.yaml", *OVERRIDES, *overrides, f"run.directory={folder}", f"run.name={name}"]
    done = subprocess.run(
        [sys.executable, "-m", "system", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    updates = [
        line["metrics"] | line["timing"] for line in lines[1 + NUM_WARMUP : -1]
    ]  # the last one has an evaluation

    def median(metric: str) -> float:
        return round(statistics.median(update.get(metric, 0.0) for update in updates), 6)

    return {
        "seconds": median("time/step_seconds"),
        "learner_busy": median("learner/busy_fraction"),
        "rollout_busy": median("rollout/busy_fraction"),
        "mismatch_kl_nats": median("learner/mismatch_kl_nats"),
        "stale_tokens": median("learner/stale_tokens_fraction"),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            name: measure(Path(folder), name=name.replace(", ", "-").replace(" ", "-"), overrides=overrides)
            for name, overrides in RUNS.items()
        }
    print(f"{'':<18}{'s/update':>10}{'learner busy':>14}{'engine busy':>13}{'mismatch KL':>13}{'stale tokens':>14}")
    for name, row in figures.items():
        print(
            f"{name:<18}{row['seconds']:>10.2f}{row['learner_busy']:>14.0%}{row['rollout_busy']:>13.0%}"
            f"{row['mismatch_kl_nats']:>13.1e}{row['stale_tokens']:>14.0%}"
        )
    fastest_sync = min(row["seconds"] for name, row in figures.items() if name != "async")
    ratio = figures["async"]["seconds"] / fastest_sync
    print(json.dumps({"benchmark": "async_demo", "async_over_sync": round(ratio, 3), "runs": figures}))


if __name__ == "__main__":
    main()
