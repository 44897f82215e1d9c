"""Greedy and sampled accuracy of a small policy on arithmetic chains, in plain transformers.

Called by system/commands/warmstart.py; a run's own evaluation goes through the rollout workers instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

from system.data.chains.expressions import ExpressionError, parse_number
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.records import Problem

GENERATION_BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Shares of problems, 0-1."""

    greedy: float
    sampled: float  # at temperature 1
    answered: float  # sampled completions that end in an answer line, right or wrong


@torch.no_grad()
def generate_completions(
    model: Qwen2ForCausalLM,
    prompts: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    is_sampled: bool,
    seed: int,
) -> list[str]:
    """One completion for each prompt, greedy or sampled at temperature 1; the global random state is left alone."""
    model.eval()
    completions: dict[int, str] = {}
    by_length = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), GENERATION_BATCH_SIZE):
            rows = by_length[start : start + GENERATION_BATCH_SIZE]
            encoded = tokenizer([prompts[row] for row in rows], padding=True, return_tensors="pt").to(model.device)
            generated = model.generate(
                input_ids=encoded["input_ids"],
                attention_mask=encoded["attention_mask"],
                max_new_tokens=max_new_tokens,
                **({"do_sample": True, "top_k": 0} if is_sampled else {"do_sample": False}),
            )
            new_tokens = generated[:, encoded["input_ids"].shape[1] :]
            completions.update(zip(rows, tokenizer.batch_decode(new_tokens, skip_special_tokens=True), strict=True))
    model.train()
    return [completions[row] for row in range(len(prompts))]


def _is_right(answer: str | None, *, reference_answer: str) -> bool:
    if answer is None:
        return False
    try:
        return parse_number(answer) == parse_number(reference_answer)
    except ExpressionError:
        return False


def measure_accuracy(
    model: Qwen2ForCausalLM,
    problems: Sequence[Problem],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    seed: int,
) -> Accuracy:
    """Greedy and sampled accuracy, one completion each; the denominator is the number of problems."""
    task = Gsm8kChainsTask()
    prompts = [task.prompt_text(problem, tokenizer=tokenizer) for problem in problems]
    answers = {}
    for is_sampled in (False, True):
        completions = generate_completions(
            model, prompts, tokenizer=tokenizer, max_new_tokens=max_new_tokens, is_sampled=is_sampled, seed=seed
        )
        answers[is_sampled] = [task.extract_answer(completion) for completion in completions]
    right = {
        is_sampled: sum(
            _is_right(answer, reference_answer=problem.reference_answer)
            for answer, problem in zip(answers[is_sampled], problems, strict=True)
        )
        for is_sampled in answers
    }
    return Accuracy(
        greedy=right[False] / len(problems),
        sampled=right[True] / len(problems),
        answered=sum(answer is not None for answer in answers[True]) / len(problems),
    )
