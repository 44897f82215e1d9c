"""What the learner waits for a checkpoint, and what is written, synced and hashed while it goes on.

    python benchmarks/checkpoint.py [--parameters 50] [--saves 3] [--directory DIR]

One learner rank with a random model of that many million parameters, in float32 (12 bytes of state each). Synchronous:
the rank waits for copy, files, sync and hashes. Asynchronous: for the copy alone; the steps that it makes until all is
written are counted. Medians; the last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from learner.background_writer import BackgroundWriter
from learner.learner import Learner
from learner.worker import free_port
from system.config.schema import LearnerConfig, LossConfig
from system.data.batching import pack_batch
from system.records import TrainingBatch, TrainingSample

VOCABULARY = 1024
HIDDEN = 512


def write_model(folder: Path, *, num_parameters: int) -> None:
    per_layer = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * 4 * HIDDEN
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=max(1, round((num_parameters - VOCABULARY * HIDDEN) / per_layer)),
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0"))).save_pretrained(folder)


def start_learner(folder: Path) -> Learner:
    learner = Learner(
        rank=0,
        num_ranks=1,
        config=LearnerConfig(learning_rate=1e-5, zero_stage=2),
        loss=LossConfig(),
        model_path=str(folder),
        revision=None,
        trust_remote_code=False,
        num_updates=1000,
        optimizer_steps=1,
        temperature=1.0,
    )
    learner.start(host="127.0.0.1", port=free_port("127.0.0.1"))
    return learner


def make_batch() -> TrainingBatch:
    rng = np.random.default_rng(0)
    samples = [
        TrainingSample(
            group_id=number,
            token_ids=rng.integers(0, VOCABULARY, size=32).astype(np.int32),
            loss_mask=np.arange(32) >= 8,
            rollout_logprobs=np.full(32, -7.0, np.float32),
            advantages=rng.normal(size=32).astype(np.float32),
            min_policy_version=0,
        )
        for number in range(2)
    ]
    return pack_batch(samples, num_ranks=1, tokens_per_microbatch=256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=50.0, help="in millions")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=None, help="where checkpoints go; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        folder = Path(directory)
        write_model(folder / "model", num_parameters=round(arguments.parameters * 1e6))
        learner, steps = start_learner(folder / "model"), make_batch().steps_by_rank[0]
        learner.train_step(steps)
        writer = BackgroundWriter(who="the learner")
        together, copies, writes, num_steps = [], [], [], []
        for number in range(arguments.saves):
            start = time.perf_counter()
            writer.start([learner.capture_checkpoint(str(folder / f"synchronous_{number}"))])
            stamps = writer.wait()
            together.append(time.perf_counter() - start)
            start = time.perf_counter()
            write = learner.capture_checkpoint(str(folder / f"asynchronous_{number}"))
            copied = time.perf_counter()
            writer.start([write])
            num_steps.append(0)
            while not writer.is_done:
                learner.train_step(steps)
                num_steps[-1] += 1
            copies.append(copied - start)
            writes.append(time.perf_counter() - copied)
        num_bytes = sum(stamp["bytes"] for stamp in stamps.values())
        learner.shutdown()
    figures = {
        "parameters": arguments.parameters * 1e6,
        "bytes": num_bytes,
        "synchronous_wait_seconds": statistics.median(together),
        "asynchronous_wait_seconds": statistics.median(copies),
        "write_seconds": statistics.median(writes),
        "steps_while_writing": statistics.median(num_steps),
    }
    print(json.dumps({"benchmark": "checkpoint"} | figures))


if __name__ == "__main__":
    main()
