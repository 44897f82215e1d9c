"""Wall time of a synchronous step over the sum of its parts done bare, from one run.

    step_over_parts = step / (the same tokens through vllm.LLM + the same batch through forward, backward, AdamW)

Credence runs configs/demo.yaml with a learning rate of almost nothing, so that every step samples from the same
weights and bare vLLM draws the very same tokens from the same seeds. The bare parts run in one process each, with both
cores to themselves: no Ray, no DeepSpeed, no weight sync, no verifier. Order: Credence, parts, Credence; medians over
steps, the first two of each run left out (warm-up). Run it without arguments; it takes about four minutes on two cores.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from system.config.load import load_config  # noqa: E402
from system.config.machine import model_folder  # noqa: E402
from system.config.schema import Config  # noqa: E402
from system.data.batching import pack_batch  # noqa: E402
from system.data.prompts import PromptSource  # noqa: E402
from system.data.tasks import make_task  # noqa: E402
from system.records import IntArray, Prompt, TrainingBatch, TrainingSample  # noqa: E402

NUM_STEPS = 7
NUM_WARMUP_STEPS = 2
OVERRIDES = [
    f"run.num_updates={NUM_STEPS}",
    "run.name=step-overhead",
    "learner.learning_rate=1e-12",
    "evaluation.every_updates=null",
    "evaluation.num_problems_final=2",
    "evaluation.num_problems=2",
    "evaluation.completions_per_problem_final=1",
    "checkpoint.every_updates=null",
    "tracker.wandb_mode=disabled",
]
PHASES = ("rollout", "batch", "train", "weight_sync")


def run_credence(directory: Path) -> list[dict[str, float]]:
    """One synchronous run; the timing of each step after the warm-up, in seconds by phase."""
    subprocess.run(
        [sys.executable, "-m", "system", "train", "configs/demo.yaml", *OVERRIDES, f"run.directory={directory}"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    run_folder = max(directory.iterdir(), key=lambda path: path.stat().st_mtime)
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    # the last line's step also holds the final evaluation
    timings = [line["timing"] for line in lines if NUM_WARMUP_STEPS < line["policy_version"] < NUM_STEPS]
    return [
        {"step": timing["time/step_seconds"]} | {phase: timing[f"time/{phase}_seconds"] for phase in PHASES}
        for timing in timings
    ]


def load_step_prompts(config: Config) -> list[list[Prompt]]:
    """The prompts of each step, as the run leases them."""
    from transformers import AutoTokenizer

    source = PromptSource(
        make_task(config.task),
        tokenizer=AutoTokenizer.from_pretrained(str(model_folder(config.model.path))),
        seed=config.run.seed,
        redraw=config.task.redraw,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
    )
    return [[source.next() for _ in range(config.batch.prompts_per_step)] for _ in range(NUM_STEPS)]


def time_generation(connection: Connection, config: Config) -> None:
    """Child process: generate every step with vllm.LLM; sends the seconds and the batches."""
    import os

    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams

    from system.rollouts.rollouter import group_seed

    rollout = config.rollout
    llm = LLM(
        model=str(model_folder(config.model.path)),
        dtype=rollout.dtype,
        max_model_len=rollout.max_prompt_tokens + rollout.max_completion_tokens,
        max_num_seqs=rollout.max_sequences,
        seed=config.run.seed,
        logprobs_mode="processed_logprobs",
        enforce_eager=rollout.enforce_eager,
        # as in actors/rollout/vllm_engine.py: on CPU vLLM dies of seeded requests whose prompt is cut into chunks
        enable_chunked_prefill=False,
        max_num_batched_tokens=4096,
    )
    seconds, batches = [], []
    for step, prompts in enumerate(load_step_prompts(config)):
        parameters = [
            SamplingParams(
                n=config.batch.completions_per_prompt,
                temperature=rollout.temperature,
                max_tokens=rollout.max_completion_tokens,
                seed=group_seed(config.run.seed, group_id=step * len(prompts) + index),
                logprobs=0,
                detokenize=False,
            )
            for index in range(len(prompts))
        ]
        inputs = [{"prompt_token_ids": prompt.token_ids.tolist()} for prompt in prompts]
        start = time.perf_counter()
        answers = llm.generate(inputs, parameters, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
        batches.append(
            [
                (prompt, np.asarray(output.token_ids, np.int32))
                for prompt, answer in zip(prompts, answers, strict=True)
                for output in answer.outputs
            ]
        )
    connection.send((seconds, batches))
    llm.llm_engine.engine_core.shutdown()  # without it this process would never end


def time_training(connection: Connection, config: Config, batches: list[list[tuple[Prompt, IntArray]]]) -> None:
    """Child process: one plain PyTorch process on all cores makes the same updates; sends the seconds."""
    import torch

    from learner.learner import PackedInputs
    from system.losses.base import LossInputs
    from system.losses.clipped_surrogate import ClippedSurrogate
    from system.losses.options import ClippedSurrogateOptions
    from system.numerics.policy_model import load_policy_model

    model = load_policy_model(
        str(model_folder(config.model.path)),
        revision=None,
        trust_remote_code=False,
        dtype=torch.float32,
        device=torch.device("cpu"),
        gradient_checkpointing=False,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learner.learning_rate)
    surrogate = ClippedSurrogate(ClippedSurrogateOptions())
    seconds = []
    for rows in batches:
        batch = packed(rows, tokens_per_microbatch=config.batch.tokens_per_microbatch)
        start = time.perf_counter()
        for micro_batch in batch.steps_by_rank[0][0].micro_batches:
            inputs = PackedInputs(micro_batch, device=torch.device("cpu"))
            statistics = inputs.forward(model, temperature=1.0)
            loss = surrogate(
                LossInputs(
                    logprobs=statistics.logprobs,
                    rollout_logprobs=statistics.logprobs.detach(),
                    advantages=inputs.advantages,
                    sequence_index=inputs.sequence_index,
                    num_sequences=len(inputs.sequence_starts) - 1,
                )
            ).loss
            (loss.sum() / batch.num_loss_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.learner.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    connection.send(seconds)


def packed(rows: list[tuple[Prompt, IntArray]], *, tokens_per_microbatch: int) -> TrainingBatch:
    """The batch of one step on a single rank, with advantages of alternating sign."""
    samples = []
    for index, (prompt, token_ids) in enumerate(rows):
        sequence = np.concatenate((prompt.token_ids, token_ids))
        is_completion = np.arange(len(sequence)) >= len(prompt.token_ids)
        samples.append(
            TrainingSample(
                group_id=index,
                token_ids=sequence,
                loss_mask=is_completion,
                rollout_logprobs=np.zeros(len(sequence), np.float32),
                advantages=np.where(is_completion, np.float32(1.0 if index % 2 else -1.0), np.float32(0.0)),
                min_policy_version=0,
            )
        )
    return pack_batch(samples, num_ranks=1, tokens_per_microbatch=tokens_per_microbatch)


def in_child(target: Callable[..., None], *arguments: object) -> Any:
    """What `target(connection, ...)` sends from a fresh process."""
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(sending, *arguments))
    process.start()
    sending.close()
    try:
        return receiving.recv()
    finally:
        process.join()


def main() -> None:
    config = load_config([ROOT / "configs/demo.yaml"], OVERRIDES)
    with tempfile.TemporaryDirectory() as directory:
        print("credence, first run", flush=True)
        steps = run_credence(Path(directory))
        print("bare vLLM, then bare training", flush=True)
        generation, batches = in_child(time_generation, config)
        training = in_child(time_training, config, batches)
        print("credence, second run", flush=True)
        steps += run_credence(Path(directory))
    generation_seconds = statistics.median(generation[NUM_WARMUP_STEPS:])
    training_seconds = statistics.median(training[NUM_WARMUP_STEPS:])
    step_seconds = statistics.median(step["step"] for step in steps)
    phases = {phase: round(statistics.median(step[phase] for step in steps), 3) for phase in PHASES}
    num_tokens = statistics.median(sum(len(token_ids) for _, token_ids in rows) for rows in batches)
    print(f"{'phase':>12}  seconds of a median step")
    for phase, seconds in phases.items():
        print(f"{phase:>12}  {seconds:.3f}")
    figures = {
        "step_over_parts": round(step_seconds / (generation_seconds + training_seconds), 3),
        "step_seconds": round(step_seconds, 3),
        "bare_generation_seconds": round(generation_seconds, 3),
        "bare_training_seconds": round(training_seconds, 3),
        "phase_seconds": phases,
        "completion_tokens_per_step": int(num_tokens),
        "target": 1.15,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
