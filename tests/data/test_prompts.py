"""Order, resumption and fresh numbers of the prompt source; the fixed prompts of an evaluation."""

import json

import numpy as np
import pytest

from system.data.character_tokenizer import build_character_tokenizer
from system.data.prompts import PromptCursor, PromptSource, evaluation_prompts
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.errors import ConfigError

TOKENIZER = build_character_tokenizer(max_length=512)


@pytest.fixture(scope="module")
def task() -> Gsm8kChainsTask:
    # Leaves 162 training problems, so that epochs are short.
    return Gsm8kChainsTask(validation_size=6600)


def make_source(
    task: Gsm8kChainsTask,
    *,
    seed: int = 0,
    redraw: bool = True,
    max_prompt_tokens: int = 128,
    cursor: PromptCursor | None = None,
) -> PromptSource:
    return PromptSource(
        task,
        tokenizer=TOKENIZER,
        seed=seed,
        redraw=redraw,
        max_prompt_tokens=max_prompt_tokens,
        cursor=cursor or PromptCursor(),
    )


def test_prompt_carries_text_tokens_and_the_answer_of_the_fresh_numbers(task: Gsm8kChainsTask) -> None:
    prompt = make_source(task).next()
    assert prompt.task == "gsm8k_chains"
    assert prompt.prompt_id.startswith("train/")
    assert prompt.prompt_id.endswith("@0")
    assert prompt.token_ids.dtype == np.int32
    assert TOKENIZER.decode(prompt.token_ids.tolist()) == prompt.text
    assert prompt.text.endswith(":")


def test_an_epoch_visits_every_problem_once_and_the_next_in_another_order(task: Gsm8kChainsTask) -> None:
    source = make_source(task)
    num_problems = len(task.load("train"))
    epochs = [[source.next().prompt_id.split("@")[0] for _ in range(num_problems)] for _ in range(2)]
    expected = {problem.problem_id for problem in task.load("train")}
    assert set(epochs[0]) == set(epochs[1]) == expected
    assert epochs[0] != epochs[1]


def test_numbers_are_fresh_at_every_visit_only_with_redraw(task: Gsm8kChainsTask) -> None:
    num_problems = len(task.load("train"))
    for redraw, least, most in ((True, 1.7, 2.0), (False, 0.9, 1.0)):
        source = make_source(task, redraw=redraw)
        texts = {source.next().text for _ in range(2 * num_problems)}
        assert least * num_problems <= len(texts) <= most * num_problems


def test_resumed_source_neither_skips_nor_repeats(task: Gsm8kChainsTask) -> None:
    whole = make_source(task, seed=5, max_prompt_tokens=16)
    expected = [(prompt.prompt_id, prompt.text) for prompt in (whole.next() for _ in range(300))]
    first = make_source(task, seed=5, max_prompt_tokens=16)
    seen = [(prompt.prompt_id, prompt.text) for prompt in (first.next() for _ in range(131))]
    cursor = PromptCursor(**json.loads(json.dumps(first.cursor.as_json())))
    second = make_source(task, seed=5, max_prompt_tokens=16, cursor=cursor)
    seen += [(prompt.prompt_id, prompt.text) for prompt in (second.next() for _ in range(169))]
    assert seen == expected
    assert second.cursor == whole.cursor
    assert len({prompt_id for prompt_id, _ in seen}) == 300


def test_a_source_that_goes_back_gives_the_same_prompts_again(task: Gsm8kChainsTask) -> None:
    source = make_source(task)
    _, cursor = source.next(), source.cursor
    expected = [source.next().text for _ in range(200)]  # into the next epoch
    source.go_to(cursor)
    assert [source.next().text for _ in range(200)] == expected


def test_another_seed_gives_another_order(task: Gsm8kChainsTask) -> None:
    assert [make_source(task, seed=seed).next().text for seed in (0, 0, 1)].count(make_source(task).next().text) == 2


def test_prompts_that_are_too_long_are_skipped_and_counted(task: Gsm8kChainsTask) -> None:
    source = make_source(task, max_prompt_tokens=16)
    num_problems = len(task.load("train"))
    num_long = sum(len(problem.question) + 1 > 16 for problem in task.load("train"))
    prompts = [source.next() for _ in range(num_problems - num_long)]
    while source.cursor.num_visits < num_problems:
        source.next()
    assert all(len(prompt.token_ids) <= 16 for prompt in prompts)
    assert 0 < num_long <= source.num_skipped <= num_long + 10
    assert source.num_skipped == source.cursor.num_skipped


def test_prompts_that_are_all_too_long_end_in_a_clear_error(task: Gsm8kChainsTask) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.max_prompt_tokens: given 2"):
        make_source(task, max_prompt_tokens=2).next()


def test_small_evaluation_is_the_beginning_of_a_larger_one(task: Gsm8kChainsTask) -> None:
    small, large = (
        evaluation_prompts(task, split="test", limit=limit, tokenizer=TOKENIZER, max_prompt_tokens=128)
        for limit in (20, 100)
    )
    assert [prompt.prompt_id for prompt in small] == [prompt.prompt_id for prompt in large[:20]]
    assert len({prompt.prompt_id for prompt in large}) == 100
    originals = {problem.problem_id: problem for problem in task.load("test")}
    for prompt in large:
        assert prompt.text == f"{originals[prompt.prompt_id].question}:"
        assert prompt.reference_answer == originals[prompt.prompt_id].reference_answer


def test_empty_evaluation_is_refused() -> None:
    task = Gsm8kChainsTask(validation_size=0)
    with pytest.raises(ConfigError, match=r"evaluation\.split: given 'validation'"):
        evaluation_prompts(task, split="validation", limit=10, tokenizer=TOKENIZER, max_prompt_tokens=128)
