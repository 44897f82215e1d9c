"""The embedded task: splits, redraws, steps and answers."""

import re
from fractions import Fraction

import numpy as np
import pytest

from system.data.chains.expressions import canonical_text, decimal_places, parse_expression, solve, split_leaves
from system.data.character_tokenizer import build_character_tokenizer
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.errors import ConfigError


def results(text: str) -> tuple[Fraction, ...]:
    shape, leaves = parse_expression(text)
    return solve(shape, leaves=leaves).results


@pytest.fixture(scope="module")
def task() -> Gsm8kChainsTask:
    return Gsm8kChainsTask()


def test_splits_have_the_expected_sizes_and_share_no_expression(task: Gsm8kChainsTask) -> None:
    texts = {split: [problem.question for problem in task.load(split)] for split in ("train", "validation", "test")}
    assert {split: len(split_texts) for split, split_texts in texts.items()} == {
        "train": 6262,
        "validation": 500,
        "test": 1179,
    }
    canonical = {split: {canonical_text(text) for text in split_texts} for split, split_texts in texts.items()}
    assert not canonical["train"] & canonical["validation"]
    assert not canonical["train"] & canonical["test"]
    assert not canonical["validation"] & canonical["test"]


def test_smaller_validation_split_is_part_of_the_larger(task: Gsm8kChainsTask) -> None:
    small = {problem.question for problem in Gsm8kChainsTask(validation_size=100).load("validation")}
    large = {problem.question for problem in task.load("validation")}
    assert len(Gsm8kChainsTask(validation_size=100).load("validation")) == 100
    assert small <= large
    assert Gsm8kChainsTask(validation_size=0).load("validation") == []


@pytest.mark.parametrize("size", [-1, 6762])
def test_impossible_validation_size_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=r"task\.validation_size: given"):
        Gsm8kChainsTask(validation_size=size)


def test_problem_states_steps_and_answer(task: Gsm8kChainsTask) -> None:
    problem = task.load("train")[0]
    assert problem.problem_id == "train/00000"
    assert problem.question == "48+(48/2)"
    assert problem.solution == "48/2=24\n48+24=72\n#72"
    assert problem.reference_answer == "72"
    assert task.prompt_text(problem, tokenizer=build_character_tokenizer(max_length=64)) == "48+(48/2):"


def test_redraw_keeps_shape_and_digits_and_stays_exact(task: Gsm8kChainsTask) -> None:
    """Over 400 chains: what redraw promises holds for each one."""
    rng = np.random.default_rng(7)
    for problem in task.load("train")[::16]:
        fresh = task.redraw(problem, rng=rng)
        template, leaves = split_leaves(problem.question)
        fresh_template, fresh_leaves = split_leaves(fresh.question)
        assert fresh_template == template
        assert [re.sub(r"\d", "9", leaf) for leaf in fresh_leaves] == [re.sub(r"\d", "9", leaf) for leaf in leaves]
        assert fresh.problem_id == problem.problem_id
        assert canonical_text(fresh.question) not in task.held_out
        assert fresh.solution.endswith(f"\n#{fresh.reference_answer}")
        for old, new in zip(results(problem.question), results(fresh.question), strict=True):
            assert old < 0 or new >= 0
            assert decimal_places(old) is None or decimal_places(new) is not None
            assert abs(new) < 10 ** (len(str(int(abs(old)))) + 1)
        for line in fresh.solution.splitlines()[:-1]:
            left, _, right = line.partition("=")
            if re.search(r"[-+*/]-", left) or left.startswith("-"):
                continue  # a negative intermediate result is written, but it is no input expression
            assert results(left)[-1] == Fraction(right)


def test_nearly_every_chain_can_be_redrawn(task: Gsm8kChainsTask) -> None:
    rng = np.random.default_rng(3)
    problems = task.load("train")[::8]
    changed = sum(task.redraw(problem, rng=rng) is not problem for problem in problems)
    assert changed / len(problems) > 0.96


def test_redraw_depends_on_the_generator_alone(task: Gsm8kChainsTask) -> None:
    problem = task.load("train")[5]
    assert task.redraw(problem, rng=np.random.default_rng(1)) == task.redraw(problem, rng=np.random.default_rng(1))
    drawn = {task.redraw(problem, rng=np.random.default_rng(seed)).question for seed in range(20)}
    assert len(drawn) > 10


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("48/2=24\n48+24=72\n#72", "72"),
        ("#-0.5\n", "-0.5"),
        ("1+1=2\n#2\n2+2=4", None),
        ("1+1=2", None),
        ("#", None),
        ("", None),
    ],
)
def test_answer_is_what_follows_the_mark_on_the_last_line(
    task: Gsm8kChainsTask, response: str, answer: str | None
) -> None:
    assert task.extract_answer(response) == answer


def test_each_line_is_a_step(task: Gsm8kChainsTask) -> None:
    assert task.cut_steps("48/2=24\n48+24=72\n#72") == [8, 17, 20]
    assert task.cut_steps("48/2=24\n") == [8]
    assert task.cut_steps("") == []


def test_step_bound_leaves_long_chains_out_of_training_only() -> None:
    whole, bounded = Gsm8kChainsTask(), Gsm8kChainsTask(max_train_steps=2)
    short = [problem for problem in whole.load("train") if len(problem.solution.splitlines()) <= 3]

    assert bounded.load("train") == short
    assert 0 < len(short) < len(whole.load("train"))
    assert bounded.load("validation") == whole.load("validation")
    assert bounded.load("test") == whole.load("test")
