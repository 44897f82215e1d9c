"""Time of the table of answer probabilities as one tree pass against a forward pass for each (step, answer).

    speedup_over_batched_naive = seconds of the naive passes / seconds of the tree pass      (target at least 10)

Run: python benchmarks/belief.py (no arguments: CPU, about three minutes on two cores). A random Qwen2 of about 50 M
parameters in float32; one response of T tokens behind a prompt of 64, S steps of equal length, the reference and K = 5
candidates of 2 to 8 tokens behind an answer prefix of 4. Naive is plain transformers: the K + 1 sequences of a step in
one batch, padded by at most 6 tokens, the LM head on answer tokens alone. The tree pass is the scoring replica's. The
two take turns, figures are medians over rounds, and the tables have to agree. The main figure is that of the largest
size; the smaller ones show how it grows with S and T.
The last line is one line of JSON.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from actors.scoring.model import ScoringModel
from system.config.schema import ScorerConfig
from system.data.character_tokenizer import build_character_tokenizer
from system.numerics.answer_trees import AnswerTree
from system.records import FloatArray

NUM_THREADS = 2
VOCABULARY = 16_384
NUM_PROMPT_TOKENS = 64
NUM_PREFIX_TOKENS = 4
ANSWER_LENGTHS = (4, 2, 8, 3, 6, 5)  # the reference and K = 5 candidates
TOLERANCE = 1e-3  # nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    num_tokens: int  # T
    num_steps: int  # S
    num_rounds: int


SIZES = (
    Size(num_tokens=256, num_steps=4, num_rounds=3),
    Size(num_tokens=512, num_steps=8, num_rounds=3),
    Size(num_tokens=1024, num_steps=16, num_rounds=2),
)


def make_policy(folder: Path) -> Qwen2ForCausalLM:
    build_character_tokenizer(max_length=2_048).save_pretrained(folder)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=512,
            intermediate_size=1_408,
            num_hidden_layers=14,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=2_048,
            tie_word_embeddings=True,
            dtype="float32",
        )
    )
    model.save_pretrained(folder)
    return model.eval()


def make_tree(size: Size) -> AnswerTree:
    rng = np.random.default_rng(0)
    length = NUM_PROMPT_TOKENS + size.num_tokens
    return AnswerTree(
        token_ids=rng.integers(0, VOCABULARY, length).astype(np.int32),
        prefix_lengths=np.linspace(NUM_PROMPT_TOKENS, length, size.num_steps + 1).astype(np.int32),
        answer_prefix=rng.integers(0, VOCABULARY, NUM_PREFIX_TOKENS).astype(np.int32),
        answers=tuple(rng.integers(0, VOCABULARY, count).astype(np.int32) for count in ANSWER_LENGTHS),
    )


@torch.no_grad()
def naive_table(model: Qwen2ForCausalLM, tree: AnswerTree) -> FloatArray:
    """float32[S+1, K+1, A], 0 behind an answer's end."""
    longest = max(ANSWER_LENGTHS)
    answers = torch.zeros(len(tree.answers), longest, dtype=torch.long)
    is_token = torch.zeros(len(tree.answers), longest, dtype=torch.bool)
    for number, answer in enumerate(tree.answers):
        answers[number, : len(answer)] = torch.from_numpy(answer)
        is_token[number, : len(answer)] = True
    table = []
    for length in tree.prefix_lengths:
        shared = torch.from_numpy(np.concatenate((tree.token_ids[:length], tree.answer_prefix))).long()
        ids = torch.cat((shared.expand(len(answers), -1), answers), dim=1)[:, :-1]
        seen = torch.cat((torch.ones(len(answers), len(shared), dtype=torch.bool), is_token), dim=1)[:, :-1]
        hidden = model.base_model(input_ids=ids, attention_mask=seen.long(), use_cache=False).last_hidden_state
        logprobs = model.lm_head(hidden[:, -longest:]).log_softmax(dim=-1)
        picked = logprobs.gather(2, answers[:, :, None])[:, :, 0]
        table.append(torch.where(is_token, picked, 0.0))
    tables: FloatArray = torch.stack(table).numpy()
    return tables


def timed(call: Callable[[], FloatArray]) -> tuple[float, FloatArray]:
    start = time.perf_counter()
    table = call()
    return time.perf_counter() - start, table


def measure(size: Size, *, plain: Qwen2ForCausalLM, replica: ScoringModel) -> dict[str, float]:
    tree = make_tree(size)
    seconds: dict[str, list[float]] = {"tree": [], "naive": []}
    for number in range(size.num_rounds):
        tree_seconds, table = timed(lambda: replica.answer_logprobs([tree], temperature=1.0)[0])
        naive_seconds, expected = timed(lambda: naive_table(plain, tree))
        difference = float(np.abs(table - expected).max())
        if not difference < TOLERANCE:
            sys.exit(f"the tables differ by {difference:g} nats")
        seconds["tree"].append(tree_seconds)
        seconds["naive"].append(naive_seconds)
        print(f"T = {size.num_tokens}, round {number + 1}: tree {tree_seconds:.2f} s, naive {naive_seconds:.2f} s, "
              f"largest difference {difference:.1e} nats", flush=True)  # fmt: skip
    medians = {method: statistics.median(values) for method, values in seconds.items()}
    return {
        f"tree_seconds_{size.num_tokens}": medians["tree"],
        f"naive_seconds_{size.num_tokens}": medians["naive"],
        f"speedup_over_batched_naive_{size.num_tokens}": medians["naive"] / medians["tree"],
    }


def main() -> None:
    torch.set_num_threads(NUM_THREADS)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = make_policy(Path(folder))
        config = replace(ScorerConfig(), threads_per_worker=NUM_THREADS)
        replica = ScoringModel(name="replica", config=config, model_path=folder, revision=None, trust_remote_code=False)
        figures["num_parameters"] = sum(parameter.numel() for parameter in plain.parameters())
        replica.answer_logprobs([make_tree(SIZES[0])], temperature=1.0)  # what is done once only
        for size in SIZES:
            figures |= measure(size, plain=plain, replica=replica)
    figures["speedup_over_batched_naive"] = figures[f"speedup_over_batched_naive_{SIZES[-1].num_tokens}"]
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
