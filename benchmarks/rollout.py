"""Tokens/s through the Ray rollout worker over tokens/s of vllm.LLM.generate for the same requests.

    rollout_over_bare = tokens/s of RolloutWorker behind Ray / tokens/s of vllm.LLM.generate

Both hold the policy of configs/demo.yaml and take turns with the same prompts, sampling and seeds, so both draw the
same tokens (checked). The worker's figure includes Ray's transport, decoding and the records; the bare one returns
token ids and log-probabilities only. Medians over rounds, after a warm-up round. No arguments; about two minutes on
two cores.
"""

import json
import statistics
import sys
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from system.config.load import load_config  # noqa: E402
from system.config.machine import model_folder  # noqa: E402
from system.config.schema import Config  # noqa: E402
from system.data.prompts import PromptSource  # noqa: E402
from system.data.tasks import make_task  # noqa: E402
from system.records import Prompt, Sampling, TrajectoryGroup  # noqa: E402
from system.rollouts.rollouter import group_seed  # noqa: E402

NUM_ROUNDS = 8  # each on new prompts
Draws = list[list[list[int]]]  # prompts x completions x token ids


def sampling_of(config: Config) -> Sampling:
    return Sampling(
        temperature=config.rollout.temperature,
        top_p=config.rollout.top_p,
        top_k=config.rollout.top_k,
        max_tokens=config.rollout.max_completion_tokens,
        num_completions=config.batch.completions_per_prompt,
        seed=config.run.seed,
    )


def load_rounds(config: Config) -> list[list[Prompt]]:
    """The first training prompts, one step's worth a round; round 0 is the warm-up."""
    from transformers import AutoTokenizer

    source = PromptSource(
        make_task(config.task),
        tokenizer=AutoTokenizer.from_pretrained(str(model_folder(config.model.path))),
        seed=config.run.seed,
        redraw=config.task.redraw,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
    )
    return [[source.next() for _ in range(config.batch.prompts_per_step)] for _ in range(1 + NUM_ROUNDS)]


def serve_bare(connection: Connection, config: Config) -> None:
    """Child process: answers each (first group id, prompts) with (seconds, draws) of vllm.LLM.generate."""
    import os

    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams

    rollout, sampling = config.rollout, sampling_of(config)
    llm = LLM(
        model=str(model_folder(config.model.path)),
        dtype=rollout.dtype,
        max_model_len=rollout.max_prompt_tokens + rollout.max_completion_tokens,
        max_num_seqs=rollout.max_sequences,
        enforce_eager=rollout.enforce_eager,
        # as in actors/rollout/vllm_engine.py: with seeds, a prompt cut in chunks kills vLLM's engine on CPU
        enable_chunked_prefill=False,
        max_num_batched_tokens=4096,
        seed=config.run.seed,
        logprobs_mode="processed_logprobs",
    )
    connection.send("ready")
    while (request := connection.recv()) is not None:
        first_group_id, prompts = request
        parameters = [
            SamplingParams(
                n=sampling.num_completions,
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                seed=group_seed(sampling.seed, group_id=first_group_id + index),
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
            )
            for index in range(len(prompts))
        ]
        inputs: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
        start = time.perf_counter()
        answers = llm.generate(inputs, parameters, use_tqdm=False)
        seconds = time.perf_counter() - start
        connection.send((seconds, [[list(output.token_ids) for output in answer.outputs] for answer in answers]))
    llm.llm_engine.engine_core.shutdown()  # else this process waits for its engine for ever


class RayWorker:
    """One RolloutWorker in a local Ray."""

    def __init__(self, config: Config) -> None:
        import ray

        from system.runtime.placement import Placement, start_ray

        self._ray = ray
        start_ray(config)
        self._actor = Placement(config=config).create_rollout_actor("rollout-0")
        self._sampling = sampling_of(config)
        ray.get(self._actor.start.remote())

    def generate(self, first_group_id: int, prompts: list[Prompt]) -> tuple[float, Draws]:
        start = time.perf_counter()
        calls = [
            self._actor.generate.remote(prompt, first_group_id + index, self._sampling)
            for index, prompt in enumerate(prompts)
        ]
        groups: list[TrajectoryGroup] = self._ray.get(calls)
        seconds = time.perf_counter() - start
        return seconds, [[one.sampled_token_ids.tolist() for one in group.trajectories] for group in groups]

    def close(self) -> None:
        self._ray.get(self._actor.shutdown.remote())
        self._ray.shutdown()


def main() -> None:
    config = load_config([str(ROOT / "configs" / "demo.yaml")], [])
    rounds = load_rounds(config)
    context = get_context("spawn")
    connection, other_end = context.Pipe()
    bare_process = context.Process(target=serve_bare, args=(other_end, config))
    bare_process.start()
    other_end.close()  # so that the death of the child ends recv
    worker = RayWorker(config)
    connection.recv()

    bare_rates: list[float] = []
    worker_rates: list[float] = []
    is_same = True
    for number, prompts in enumerate(rounds):
        first_group_id = number * len(prompts)
        answers: dict[str, tuple[float, Draws]] = {}
        # taking turns who goes first: whatever else the machine does hits both
        for who in ("bare", "worker") if number % 2 else ("worker", "bare"):
            if who == "worker":
                answers[who] = worker.generate(first_group_id, prompts)
            else:
                connection.send((first_group_id, [prompt.token_ids.tolist() for prompt in prompts]))
                answers[who] = connection.recv()
        is_same = is_same and answers["bare"][1] == answers["worker"][1]
        if number == 0:
            continue
        num_tokens = sum(len(draw) for group in answers["bare"][1] for draw in group)
        bare_rates.append(num_tokens / answers["bare"][0])
        worker_rates.append(num_tokens / answers["worker"][0])
        print(f"round {number}: bare {bare_rates[-1]:.0f} tokens/s, worker {worker_rates[-1]:.0f} tokens/s", flush=True)

    connection.send(None)
    worker.close()
    bare_process.join()
    figures = {
        "rollout_over_bare": round(statistics.median(worker_rates) / statistics.median(bare_rates), 3),
        "worker_tokens_per_second": round(statistics.median(worker_rates)),
        "bare_tokens_per_second": round(statistics.median(bare_rates)),
        "same_tokens": is_same,
        "rounds": NUM_ROUNDS,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
