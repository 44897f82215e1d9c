"""What the flight recorder costs a step: bytes and milliseconds for 512 completions of 128 tokens.

The recorder's own calls, in one thread as in a run, on random tokens of a large vocabulary, random text and random
log-probabilities, which hardly compress. Medians of 20 steps; it takes a few seconds.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from system.commands.run_inputs import make_algorithm  # noqa: E402
from system.config.load import load_config  # noqa: E402
from system.config.schema import Config  # noqa: E402
from system.data.samples import make_batch_samples  # noqa: E402
from system.data.tasks import make_task  # noqa: E402
from system.metrics import MetricSet, MetricTable  # noqa: E402
from system.records import (  # noqa: E402
    Metric,
    PolicyVersions,
    Prompt,
    RewardTerm,
    ScoredGroup,
    StepResult,
    Trajectory,
    TrajectoryGroup,
)
from system.runtime.batch_preparation import PreparedBatch, pack_samples  # noqa: E402
from system.runtime.flight_recorder import FlightRecorder, ring  # noqa: E402

NUM_PROMPTS, NUM_COMPLETIONS, NUM_PROMPT_TOKENS, NUM_TOKENS, NUM_ENTRIES = 32, 16, 48, 128, 50_000
NUM_STEPS = 20


def scored_group(group_id: int, *, random: np.random.Generator) -> ScoredGroup:
    prompt = random.integers(0, NUM_ENTRIES, NUM_PROMPT_TOKENS).astype(np.int32)
    is_sampled = np.arange(NUM_PROMPT_TOKENS + NUM_TOKENS) >= NUM_PROMPT_TOKENS
    trajectories = tuple(
        Trajectory(
            index=index,
            token_ids=np.concatenate([prompt, random.integers(0, NUM_ENTRIES, NUM_TOKENS).astype(np.int32)]),
            is_sampled=is_sampled,
            logprobs=np.where(is_sampled, -random.exponential(size=len(is_sampled)), 0.0).astype(np.float32),
            policy_versions=PolicyVersions(starts=np.zeros(1, np.int32), versions=np.array([3], np.int32)),
            text="".join(map(chr, random.integers(97, 123, 4 * NUM_TOKENS))),
            finish_reason="stop",
        )
        for index in range(NUM_COMPLETIONS)
    )
    terms = tuple(
        (
            RewardTerm(
                scorer="verifier", value=float(random.integers(2)), status="ok", reason="right", policy_version=-1,
                seconds=float(random.random()),
            ),
        )
        for _ in trajectories
    )  # fmt: skip
    text = "".join(map(chr, random.integers(97, 123, 4 * NUM_PROMPT_TOKENS)))
    asked = Prompt(prompt_id=f"p{group_id}", token_ids=prompt, text=text, reference_answer="2", task="gsm8k_chains")
    return ScoredGroup(group=TrajectoryGroup(group_id=group_id, prompt=asked, trajectories=trajectories), terms=terms)


def prepared_batch(config: Config) -> PreparedBatch:
    random = np.random.default_rng(0)
    groups = [scored_group(group_id, random=random) for group_id in range(NUM_PROMPTS)]
    credit = make_algorithm(config, task=make_task(config.task)).credit(groups)
    return PreparedBatch(
        policy_version=3,
        groups=groups,
        credit=credit,
        batch=pack_samples(make_batch_samples(groups, credit=credit.groups), config=config),
        metrics=MetricSet(MetricTable(())),
        taken_at=0.0,
        rescored_at=0.0,
    )


def fail(title: str, *, text: str) -> None:
    raise OSError(f"{title}: {text}")


def main() -> None:
    config = load_config([ROOT / "configs" / "demo.yaml"], ["batch.tokens_per_microbatch=16384"], check_devices=False)
    prepared = prepared_batch(config)
    metrics = tuple(Metric(name=f"learner/{number}", value=number / 3) for number in range(30))
    wall, cpu = [], []
    with tempfile.TemporaryDirectory() as folder:
        recorder = FlightRecorder(Path(folder), config=config, alert=fail)
        for version in range(NUM_STEPS):
            start, start_cpu = time.perf_counter(), time.thread_time()
            recorder.begin(prepared, policy_version=version)
            recorder.finish(StepResult(policy_version=version + 1, has_new_weights=True, metrics=metrics))
            wall.append(time.perf_counter() - start)
            cpu.append(time.thread_time() - start_cpu)
        num_bytes = ring(Path(folder))[-1].path.stat().st_size
    print(
        json.dumps(
            {
                "completions": NUM_PROMPTS * NUM_COMPLETIONS,
                "tokens_of_a_completion": NUM_TOKENS,
                "bytes": num_bytes,
                "bytes_per_token": num_bytes / prepared.batch.num_loss_tokens,
                "milliseconds": 1e3 * statistics.median(wall),
                "processor_milliseconds": 1e3 * statistics.median(cpu),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
