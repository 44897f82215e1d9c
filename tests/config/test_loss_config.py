"""The section `loss` and the batch's optimizer steps: each mistake with the one line that it ends in."""

import re
from collections.abc import Callable

import pytest

from system.config.schema import Config
from system.errors import ConfigError

MISTAKES = [
    (["loss.options.importance_cap=0"], r"loss.options.importance_cap: given 0.0, expected at least 1. .*"),
    (["loss.kl_coefficient=-0.1"], r"loss.kl_coefficient: given -0.1, expected at least 0. .*"),
    (["loss.options.clip_low=1"], r"loss.options.clip_low: given 1.0, expected at least 0 and below 1. .*"),
    (["loss.options.dual_clip=1"], r"loss.options.dual_clip: given 1.0, expected above 1. .*"),
    (["loss.options.clip_high=wide"], r"loss.options.clip_high: given 'wide', expected a number. .*"),
    (["loss.options=0.3"], r"loss.options: given 0.3, expected a mapping. .*"),
    (["loss.name=ppo"], r"loss.name: given 'ppo', expected one of clipped_surrogate, gspo, cispo, or .*"),
    (
        ["loss.name=cispo", "loss.options.importance_cap=2"],
        r"loss.options.importance_cap: given 2, expected one of clip_low, clip_high. .*",
    ),
    (
        ["loss.name=no_such_module:Loss"],
        r"loss.name: given 'no_such_module:Loss', expected an import path package.module:Name \(ModuleNotFoundError: "
        r".*\). Fix: the module has to be importable from .*",
    ),
    (["loss.denominator=constant"], r"loss.constant_length: given None, expected a number of tokens .*"),
    (["loss.constant_length=99"], r"loss.constant_length: given 99, expected .* null with any other. .*"),
    (
        ["batch.skip_zero_advantages=true", "loss.kl_coefficient=0.01"],
        r"batch.skip_zero_advantages: given True, expected false with loss.kl_coefficient=0.01, .*",
    ),
    (
        ["batch.optimizer_steps=17", "learner.num_ranks=2"],
        r"batch.optimizer_steps: given 17, expected at most 16, so that each step has a completion for each .*",
    ),
    (["batch.portions=9"], r"batch.portions: given 9, expected at most batch.prompts_per_step=8. .*"),
    (
        ["batch.portions=2", "batch.optimizer_steps=2"],
        r"batch.portions: given 2, expected 1 with batch.optimizer_steps above 1: .*",
    ),
    (
        ["batch.portions=2", "learner.zero_stage=0", "learner.dtype=bfloat16"],
        r"batch.portions: given 2, expected 1 with learner.zero_stage=0 in bfloat16, .*",
    ),
    (
        ["batch.portions=2", "algorithm.name=reinforce_pp"],
        r"batch.portions: given 2, expected 1: algorithm.name=reinforce_pp, with its options, compares the groups .*",
    ),
    (
        ["batch.portions=2", "algorithm.options.deviation=batch"],
        r"batch.portions: given 2, expected 1: algorithm.name=grpo, with its options, compares the groups .*",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[" ".join(overrides) for overrides, _ in MISTAKES])
def test_mistakes_end_in_one_line(make_config: Callable[..., Config], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(*overrides)
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


def test_the_largest_number_of_optimizer_steps_passes(make_config: Callable[..., Config]) -> None:
    assert make_config("batch.optimizer_steps=16", "learner.num_ranks=2").batch.optimizer_steps == 16
