"""The order in which training prompts come, and the fixed prompts of an evaluation.

Called by `credence train` and the controller. Visit v is position v mod n of epoch v div n. The order of an epoch
follows from (seed, epoch) and the fresh numbers of a visit from (seed, visit), so that the cursor, a count of visits,
is all that a resumed run needs to neither skip nor repeat a prompt.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from system.data.tasks.splits import stable_digest
from system.errors import ConfigError
from system.interfaces import Split, Task, Tokenizer
from system.records import Problem, Prompt

_ORDER_STREAM = 0  # keeps the seeds of epochs and of visits apart
_REDRAW_STREAM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCursor:
    """How far the training prompts have been read; restored with `PromptCursor(**cursor.as_json())`."""

    num_visits: int = 0  # prompts given out and prompts skipped
    num_skipped: int = 0  # prompts that were too long

    def as_json(self) -> dict[str, int]:
        return dataclasses.asdict(self)


def make_prompt(problem: Problem, *, prompt_id: str, task: Task, tokenizer: Tokenizer) -> Prompt:
    text = task.prompt_text(problem, tokenizer=tokenizer)
    return Prompt(
        prompt_id=prompt_id,
        # The text already holds every special token.
        token_ids=np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.int32),
        text=text,
        reference_answer=problem.reference_answer,
        task=task.name,
    )


class PromptSource:
    """Endless training prompts of a task in seeded order. Raises ConfigError when the task has no training problem."""

    def __init__(
        self,
        task: Task,
        *,
        tokenizer: Tokenizer,
        seed: int,
        redraw: bool,
        max_prompt_tokens: int,
        cursor: PromptCursor = PromptCursor(),
    ) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._seed = seed
        self._redraw = redraw
        self._max_prompt_tokens = max_prompt_tokens
        self._cursor = cursor
        self._problems = task.load("train")
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        if not self._problems:
            raise ConfigError(
                "task.train_path", given="no training problem", expected="at least one", fix="give another file"
            )

    @property
    def cursor(self) -> PromptCursor:
        """Where the next prompt comes from."""
        return self._cursor

    def go_to(self, cursor: PromptCursor) -> None:
        """Continue where a checkpoint stood."""
        self._cursor = cursor

    @property
    def num_skipped(self) -> int:
        """Prompts left out because they were longer than max_prompt_tokens, since the beginning of the run."""
        return self._cursor.num_skipped

    def next(self) -> Prompt:
        """The next prompt that is short enough; its id is unique, `train/00012@57` for visit 57.

        Raises ConfigError when a whole epoch of prompts is too long.
        """
        for _ in self._problems:
            visit = self._cursor.num_visits
            prompt = self._prompt_of_visit(visit)
            is_too_long = len(prompt.token_ids) > self._max_prompt_tokens
            self._cursor = PromptCursor(
                num_visits=visit + 1, num_skipped=self._cursor.num_skipped + (1 if is_too_long else 0)
            )
            if not is_too_long:
                return prompt
        raise ConfigError(
            "rollout.max_prompt_tokens",
            given=self._max_prompt_tokens,
            expected="room for at least one prompt in an epoch",
            fix="raise rollout.max_prompt_tokens",
        )

    def _prompt_of_visit(self, visit: int) -> Prompt:
        epoch, position = divmod(visit, len(self._problems))
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self._seed, _ORDER_STREAM, epoch)).permutation(len(self._problems))
        problem = self._problems[self._order[position]]
        if self._redraw:
            problem = self._task.redraw(problem, rng=np.random.default_rng((self._seed, _REDRAW_STREAM, visit)))
        return make_prompt(
            problem, prompt_id=f"{problem.problem_id}@{visit}", task=self._task, tokenizer=self._tokenizer
        )


def evaluation_prompts(
    task: Task, *, split: Split, limit: int, tokenizer: Tokenizer, max_prompt_tokens: int
) -> list[Prompt]:
    """At most `limit` prompts of a split in a fixed shuffled order, those that are too long left out.

    The order follows from the questions alone, so that a smaller evaluation is the beginning of a larger one and no
    subject of a sorted file is favoured. Raises ConfigError when nothing is left to evaluate on.
    """
    prompts: list[Prompt] = []
    for problem in sorted(task.load(split), key=lambda problem: stable_digest(problem.question)):
        if len(prompts) == limit:
            break
        prompt = make_prompt(problem, prompt_id=problem.problem_id, task=task, tokenizer=tokenizer)
        if len(prompt.token_ids) <= max_prompt_tokens:
            prompts.append(prompt)
    if not prompts:
        raise ConfigError(
            "evaluation.split",
            given=split,
            expected=f"a split with problems of at most {max_prompt_tokens} prompt tokens",
            fix="choose another split, or raise task.validation_size or rollout.max_prompt_tokens",
        )
    return prompts
