"""What a run needs before any actor starts: task, algorithm, tokenizer, prompts, and the canary of its weight syncs.

Whatever is wrong with them is found here, in seconds, and not when every engine is up. Called by `credence train`,
`evaluate`, `select` and `certainty-report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from system.algorithms.base import Algorithm, Context
from system.config.algorithms import algorithm_class, algorithm_options
from system.config.machine import model_folder
from system.config.schema import Config
from system.config.scorers import reward_weights
from system.data.prompts import PromptCursor, PromptSource, evaluation_prompts
from system.data.tasks import make_task
from system.records import Prompt

if TYPE_CHECKING:
    from system.interfaces import Split, Task, Tokenizer

_CANARY_TOKENS = 48
_CANARY_SPLITS: tuple[Split, ...] = ("validation", "train", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """The data of a training run."""

    task: Task
    algorithm: Algorithm
    training_prompts: PromptSource
    held_out_prompts: Sequence[Prompt]
    num_known_tokens: int  # entries of the tokenizer
    canary_token_ids: Sequence[int]  # whose log-probabilities prove that weights arrived


def read_inputs(config: Config, *, cursor: PromptCursor | None) -> RunInputs:
    """Everything that the run reads; `cursor` is where a resumed run goes on. Raises ConfigError."""
    task, tokenizer = make_task(config.task), load_tokenizer(config)
    return RunInputs(
        task=task,
        algorithm=make_algorithm(config, task=task),
        training_prompts=PromptSource(
            task,
            tokenizer=tokenizer,
            seed=config.run.seed,
            redraw=config.task.redraw,
            max_prompt_tokens=config.rollout.max_prompt_tokens,
            cursor=PromptCursor() if cursor is None else cursor,
        ),
        held_out_prompts=held_out_prompts(config, task=task, tokenizer=tokenizer),
        num_known_tokens=len(tokenizer),  # type: ignore[arg-type]  # every transformers tokenizer has a length
        canary_token_ids=canary_token_ids(task, tokenizer=tokenizer),
    )


def make_algorithm(config: Config, *, task: Task) -> Algorithm:
    """The algorithm that the configuration names. Raises ConfigError when the task cannot serve it."""
    context = Context(weights=reward_weights(config.reward), normalise_terms=config.reward.normalise_terms, task=task)
    made: Algorithm = algorithm_class(config.algorithm.name)(algorithm_options(config.algorithm), context=context)
    return made


def held_out_prompts(config: Config, *, task: Task, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts of the largest evaluation. Raises ConfigError when there is none."""
    return evaluation_prompts(
        task,
        split=config.evaluation.split,
        limit=max(config.evaluation.num_problems, config.evaluation.num_problems_final),
        tokenizer=tokenizer,
        max_prompt_tokens=config.rollout.max_prompt_tokens,
    )


def load_tokenizer(config: Config) -> Tokenizer:
    """The policy's own tokenizer."""
    from transformers import AutoTokenizer

    model = config.model
    return AutoTokenizer.from_pretrained(
        str(model_folder(model.path) or model.path),
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
    )


def canary_token_ids(task: Task, *, tokenizer: Tokenizer) -> list[int]:
    """Prompt and solution of a held-out problem, or of a training problem where none is held out; cut to 48 tokens."""
    problem = next(problem for split in _CANARY_SPLITS for problem in task.load(split))
    text = task.prompt_text(problem, tokenizer=tokenizer) + problem.solution
    return tokenizer.encode(text, add_special_tokens=False)[:_CANARY_TOKENS]
