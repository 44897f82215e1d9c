"""Wall time of a synchronous step over the sum of its parts done bare, step by step in one run.

    step_over_parts = step / (the same tokens through vllm.LLM + the same batch through forward, backward, AdamW)

Credence runs configs/demo.yaml with a learning rate of almost nothing, so that every step samples from the same
weights and bare vLLM draws the very same tokens from the same seeds. After each step, with nothing in flight, the run
pauses and the bare parts do that step: generation, then training, in one process each that otherwise waits, with both
cores to themselves (no Ray, no DeepSpeed, no weight sync, no verifier). Whatever else the machine does so hits both
alike. The figure is the median of the steps' ratios, the first left out (warm-up). Run it without arguments; it takes
less than two minutes on two cores.
"""

import asyncio
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from system.commands import train  # noqa: E402
from system.commands.run_controllers import RunControllers  # noqa: E402
from system.config.load import load_config  # noqa: E402
from system.config.machine import model_folder  # noqa: E402
from system.config.schema import Config  # noqa: E402
from system.data.batching import pack_batch  # noqa: E402
from system.data.prompts import PromptSource  # noqa: E402
from system.data.tasks import make_task  # noqa: E402
from system.records import IntArray, Prompt, TrainingBatch, TrainingSample  # noqa: E402
from system.runtime.parts import Parts  # noqa: E402
from system.runtime.pool_member import PoolMember  # noqa: E402
from system.runtime.weight_sync import SyncReport, WeightSync  # noqa: E402
from system.weights.manifest import WeightsManifest  # noqa: E402

NUM_STEPS = 5
NUM_WARMUP_STEPS = 1
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


class PausingSync:
    """A weight sync after which the run waits for the bare parts of the step that just ended."""

    def __init__(self, weight_sync: Any, *, do_bare_step: Callable[[int], tuple[float, float]]) -> None:
        self._weight_sync = weight_sync
        self._do_bare_step = do_bare_step
        self._resumed_at = time.perf_counter()
        self.steps: list[dict[str, float]] = []  # seconds

    async def update(self, manifest: WeightsManifest) -> SyncReport:
        report: SyncReport = await self._weight_sync.update(manifest)
        seconds = time.perf_counter() - self._resumed_at
        if manifest.policy_version > 0:
            generation, training = await asyncio.to_thread(self._do_bare_step, manifest.policy_version - 1)
            self.steps.append({"step": seconds, "bare_generation": generation, "bare_training": training})
        self._resumed_at = time.perf_counter()
        return report

    async def admit(self, member: PoolMember) -> None:
        await self._weight_sync.admit(member)


def run_credence(config: Config, *, do_bare_step: Callable[[int], tuple[float, float]]) -> list[dict[str, float]]:
    """One synchronous run in this process; the seconds of each step and of its bare parts."""
    syncs: list[PausingSync] = []
    connect = RunControllers._connect

    def connect_pausing(*arguments: Any) -> Parts:
        parts = connect(*arguments)
        syncs.append(PausingSync(parts.weight_sync, do_bare_step=do_bare_step))
        return dataclasses.replace(parts, weight_sync=cast(WeightSync, syncs[-1]))

    RunControllers._connect = connect_pausing  # type: ignore[method-assign, assignment]
    code = train.main_train(config)
    assert code == 0, f"the run ended with {code}"
    return syncs[0].steps


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
    """Child process: generates the step that it is sent with vllm.LLM; sends the seconds and the rows."""
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
    step_prompts = load_step_prompts(config)
    connection.send(None)
    while (step := connection.recv()) is not None:
        prompts = step_prompts[step]
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
        seconds = time.perf_counter() - start
        rows = [
            (prompt, np.asarray(output.token_ids, np.int32))
            for prompt, answer in zip(prompts, answers, strict=True)
            for output in answer.outputs
        ]
        connection.send((seconds, rows))
    llm.llm_engine.engine_core.shutdown()  # without it this process would never end


def time_training(connection: Connection, config: Config) -> None:
    """Child process: plain PyTorch on all cores makes the update of the rows that it is sent; sends the seconds."""
    import torch

    from learner.packed_loss import PackedInputs
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
    connection.send(None)
    while (rows := connection.recv()) is not None:
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
        connection.send(time.perf_counter() - start)


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


class Child:
    """A process that says when it is ready, and answers one message at a time; it starts while the run starts."""

    def __init__(self, target: Callable[[Connection, Config], None], config: Config) -> None:
        context = get_context("spawn")
        self._connection, sending = context.Pipe()
        self._process = context.Process(target=target, args=(sending, config))
        self._process.start()
        sending.close()
        self._is_ready = False

    def ask(self, message: object) -> Any:
        if not self._is_ready:
            self._is_ready = self._connection.recv() is None
        self._connection.send(message)
        return self._connection.recv()

    def end(self) -> None:
        self._connection.send(None)
        self._process.join(30)
        self._process.kill()


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        config = load_config([ROOT / "configs/demo.yaml"], [*OVERRIDES, f"run.directory={directory}"])
        generation, training = Child(time_generation, config), Child(time_training, config)
        num_tokens: list[int] = []

        def do_bare_step(step: int) -> tuple[float, float]:
            generation_seconds, rows = generation.ask(step)
            num_tokens.append(sum(len(token_ids) for _, token_ids in rows))
            return generation_seconds, training.ask(rows)

        try:
            steps = run_credence(config, do_bare_step=do_bare_step)[NUM_WARMUP_STEPS:]
        finally:
            generation.end()
            training.end()
    medians = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    ratios = [step["step"] / (step["bare_generation"] + step["bare_training"]) for step in steps]
    figures = {
        "benchmark": "step_overhead",
        "step_over_parts": round(statistics.median(ratios), 3),
        "step_over_parts_of_each": [round(ratio, 3) for ratio in ratios],
        **{f"{name}_seconds": round(seconds, 3) for name, seconds in medians.items()},
        "completion_tokens_per_step": int(statistics.median(num_tokens)),
        "target": 1.10,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
