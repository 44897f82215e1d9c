"""Contracts between the layers: tasks and scorers. No implementation lives here."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from system.records import (
    AnswerContinuation,
    BoolArray,
    Problem,
    RewardTerm,
    TrajectoryGroup,
)

Split = Literal["train", "validation", "test"]
# exact rational comparison, math-verify on text, a program that is run on tests (they are the reference answer), or a
# response that contains the reference
AnswerKind = Literal["rational", "math", "code", "contains"]


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that tasks use."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool = ..., add_generation_prompt: bool = ...
    ) -> str: ...


class Task(Protocol):
    """One task = one file in system/data/tasks/."""

    name: str
    answer_kind: AnswerKind

    def load(self, split: Split) -> list[Problem]:
        """All problems of a split, in a fixed order. Raises ConfigError when the data cannot be found."""

    def redraw(self, problem: Problem, *, rng: np.random.Generator) -> Problem:
        """A fresh variant of a training problem (same shape); the problem itself where the task has none."""

    def prompt_text(self, problem: Problem, *, tokenizer: Tokenizer) -> str:
        """What the model reads, special tokens included."""

    def cut_steps(self, response: str) -> list[int]:
        """End offsets (in characters, ascending) of the response's steps."""

    def extract_answer(self, response: str) -> str | None:
        """The final answer as text, or None when the response states none."""

    def reasoning_end(self, response: str) -> int:
        """Offset in characters where the statement of the final answer begins; the whole length where none does."""

    def answer_continuation(self, answer: str) -> AnswerContinuation:
        """How the response would go on if it had to state `answer` after a step."""


@runtime_checkable
class StepwiseTask(Protocol):
    """A task that can say what an answer would pay at each step; one token of its responses is one step."""

    def payments(self, response: str, *, answer: str) -> BoolArray:
        """bool[S]: whether step t would be rewarded if `answer` were right."""


class Scorer(Protocol):
    """Gives one RewardTerm to each trajectory of a group; never raises on what a model wrote."""

    name: str

    def score(self, group: TrajectoryGroup) -> tuple[RewardTerm, ...]: ...

    def close(self) -> None: ...
