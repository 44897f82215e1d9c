"""Runs one function on several learner ranks, each in its own process, and brings back what they return.

The processes are forked from a server that has imported torch, transformers and DeepSpeed once.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from learner.learner import Learner
from system.config.schema import LearnerConfig, LossConfig
from system.records import TrainingSample

RankFunction = Callable[..., Any]  # (rank, num_ranks, port, *arguments) -> picklable
VOCABULARY = 32
NUM_UPDATES = 5
TIMEOUT_SECONDS = 120.0
# The last one imports torch's compiler, which takes longer than all the rest of a start.
_PRELOAD = ["learner.learner", "deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.muon.original_muon"]


def run_ranks(function: RankFunction, *arguments: Any, num_ranks: int) -> list[Any]:
    """`function`'s result on each rank; an exception on any rank is raised here with its traceback."""
    os.environ["DS_ACCELERATOR"] = "cpu"  # read when the fork server imports DeepSpeed
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    pipes, processes = [], []
    for rank in range(num_ranks):
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(sending, function, rank, num_ranks, port, arguments), daemon=True)
        process.start()
        sending.close()
        pipes.append(receiving)
        processes.append(process)
    results: dict[int, Any] = {}
    try:
        while len(results) < num_ranks:
            waiting = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in results}
            ready = wait(list(waiting), timeout=TIMEOUT_SECONDS)
            assert ready, f"ranks {sorted(waiting.values())} did not answer within {TIMEOUT_SECONDS:g} s"
            for pipe in ready:
                assert isinstance(pipe, Connection)
                result, failure = pipe.recv()
                assert failure is None, f"rank {waiting[pipe]}: {failure}"
                results[waiting[pipe]] = result
    finally:
        for process in processes:
            process.join(timeout=10 if len(results) == num_ranks else 0)
            process.kill()
    return [results[rank] for rank in range(num_ranks)]


def _run(
    sending: Connection, function: RankFunction, rank: int, num_ranks: int, port: int, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    try:
        sending.send((function(rank, num_ranks, port, *arguments), None))
    except BaseException:
        sending.send((None, traceback.format_exc()))
        raise


def learner_config(**changes: Any) -> LearnerConfig:
    """Warm-up over 2 of 5 updates; an epsilon above the rounding noise of gradients that are zero in theory."""
    values: dict[str, Any] = {
        "zero_stage": 0,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "warmup_ratio": 0.4,
        "adam_epsilon": 1e-6,
        "max_grad_norm": 0.05,
        "start_timeout_seconds": 60.0,
        "step_timeout_seconds": 60.0,
    }
    return LearnerConfig(**{**values, **changes})


def start_learner(
    rank: int,
    num_ranks: int,
    port: int,
    *,
    config: LearnerConfig,
    loss: LossConfig,
    model_path: str,
    optimizer_steps: int = 1,
) -> Learner:
    learner = Learner(
        rank=rank,
        num_ranks=num_ranks,
        config=config,
        loss=loss,
        model_path=model_path,
        revision=None,
        trust_remote_code=False,
        num_updates=NUM_UPDATES,
        optimizer_steps=optimizer_steps,
        temperature=1.0,
    )
    learner.start(host="127.0.0.1", port=port)
    return learner


def write_model(folder: Path, *, tied: bool) -> str:
    """A small random Qwen2 model with grouped-query attention and a tokenizer."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=tied,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0"))).save_pretrained(folder)
    return str(folder)


def make_samples(model_path: str) -> list[TrainingSample]:
    """16 sequences whose behaviour policy is the initial model plus noise, so that some ratios are clipped."""
    generator = np.random.default_rng(0)
    model = Qwen2ForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    samples = []
    for index in range(16):
        length = int(generator.integers(12, 40))
        token_ids = generator.integers(0, VOCABULARY, size=length).astype(np.int32)
        with torch.no_grad():
            log_p = model(input_ids=torch.from_numpy(token_ids).long()[None]).logits[0].log_softmax(dim=-1)
        own = log_p[:-1].gather(1, torch.from_numpy(token_ids).long()[1:, None])[:, 0].numpy()
        loss_mask = np.arange(length) >= generator.integers(1, 8)
        noisy = np.concatenate([[0], own + generator.normal(0, 0.4, size=length - 1)])
        samples.append(
            TrainingSample(
                group_id=index,
                token_ids=token_ids,
                loss_mask=loss_mask,
                rollout_logprobs=np.where(loss_mask, noisy, 0).astype(np.float32),
                advantages=np.where(loss_mask, generator.normal(), 0).astype(np.float32),
                min_policy_version=-(index % 2),
            )
        )
    return samples
