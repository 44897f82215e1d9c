"""The tree pass of a scoring replica against one plain forward pass of transformers for each (step, answer)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from actors.scoring.model import ScoringModel
from system.config.schema import ScorerConfig
from system.numerics.answer_trees import AnswerTree
from system.records import FloatArray, IntArray
from tests.tiny_policies import NUM_TOKENIZER_ENTRIES, make_policy

TOLERANCE = 1e-4  # nats, float32
NUM_SHAPES = 200
TEMPERATURE = 1.0


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"), is_tied=True)


def make_model(policy: Path, *, tokens_per_pass: int) -> ScoringModel:
    config = replace(ScorerConfig(), tokens_per_pass=tokens_per_pass)
    return ScoringModel(name="replica", config=config, model_path=str(policy), revision=None, trust_remote_code=False)


def random_tree(rng: np.random.Generator) -> AnswerTree:
    """Any shape: steps that end on the first and on the last token, several at one token, or no step at all;
    answers of one token or many, one alone, or the same twice; with and without an answer prefix."""

    def tokens(count: int) -> IntArray:
        return rng.integers(3, NUM_TOKENIZER_ENTRIES, count).astype(np.int32)

    num_prompt, num_completion, num_steps = int(rng.integers(1, 12)), int(rng.integers(0, 40)), int(rng.integers(0, 7))
    ends = np.sort(rng.integers(0, num_completion + 1, num_steps))
    if num_steps and rng.random() < 0.5:
        ends[-1] = num_completion
    if num_steps and rng.random() < 0.3:
        ends[0] = min(1, ends[0])
    answers = [tokens(int(rng.integers(1, 7))) for _ in range(rng.integers(1, 6))]
    if rng.random() < 0.3:
        answers.append(answers[0])
    return AnswerTree(
        token_ids=tokens(num_prompt + num_completion),
        prefix_lengths=(num_prompt + np.concatenate(([0], ends))).astype(np.int32),
        answer_prefix=tokens(int(rng.integers(0, 4))),
        answers=tuple(answers),
    )


def naive_table(model: Qwen2ForCausalLM, tree: AnswerTree) -> FloatArray:
    """float32[S+1, K+1, A] by a forward pass for each step and answer."""
    longest = max(len(answer) for answer in tree.answers)
    table = np.zeros((len(tree.prefix_lengths), len(tree.answers), longest), dtype=np.float32)
    for step, length in enumerate(tree.prefix_lengths):
        for number, answer in enumerate(tree.answers):
            ids = np.concatenate((tree.token_ids[:length], tree.answer_prefix, answer)).astype(np.int64)
            with torch.no_grad():
                logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, -len(answer) - 1 : -1]
            logprobs = logits.double().log_softmax(dim=-1).gather(1, torch.from_numpy(answer).long()[:, None])[:, 0]
            table[step, number, : len(answer)] = logprobs.numpy()
    return table


@pytest.mark.parametrize("tokens_per_pass", [1, 300, 100_000])
def test_tree_pass_equals_naive_passes_for_random_shapes(policy: Path, tokens_per_pass: int) -> None:
    rng = np.random.default_rng(tokens_per_pass)
    trees = [random_tree(rng) for _ in range(NUM_SHAPES)]
    tables = make_model(policy, tokens_per_pass=tokens_per_pass).answer_logprobs(trees, temperature=TEMPERATURE)
    plain = Qwen2ForCausalLM.from_pretrained(policy, dtype=torch.float32)
    differences, sizes = [], []
    for tree, table in zip(trees, tables, strict=True):
        expected = naive_table(plain, tree)
        assert table.shape == expected.shape
        differences.append(float(np.abs(table - expected).max()))
        sizes.append(float(np.abs(expected).max()))
    assert max(differences) < TOLERANCE
    assert max(sizes) > 5  # nats: the values are far from what a broken pass would give by chance


def test_a_branch_that_saw_one_token_more_would_be_noticed(policy: Path) -> None:
    tree = random_tree(np.random.default_rng(5))
    assert tree.prefix_lengths[0] < len(tree.token_ids)
    (table,) = make_model(policy, tokens_per_pass=1000).answer_logprobs([tree], temperature=TEMPERATURE)
    shifted = replace(tree, prefix_lengths=tree.prefix_lengths[:1] + 1)
    (other,) = make_model(policy, tokens_per_pass=1000).answer_logprobs([shifted], temperature=TEMPERATURE)
    assert np.abs(table[0] - other[0]).max() > 0.01
