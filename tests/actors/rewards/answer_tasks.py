"""A tiny task for tests of scorers: the answer is what follows `#` on the last line; and groups of its responses."""

import numpy as np

from system.interfaces import AnswerKind, Split, Tokenizer
from system.records import (
    AnswerContinuation,
    FinishReason,
    Problem,
    Prompt,
    TrajectoryGroup,
)
from tests.trajectories import single_turn


class HashTask:
    name = "hash"

    def __init__(self, answer_kind: AnswerKind) -> None:
        self.answer_kind: AnswerKind = answer_kind

    def load(self, split: Split) -> list[Problem]:
        return []

    def redraw(self, problem: Problem, *, rng: np.random.Generator) -> Problem:
        return problem

    def prompt_text(self, problem: Problem, *, tokenizer: Tokenizer) -> str:
        return problem.question

    def cut_steps(self, response: str) -> list[int]:
        return [len(response)]

    def extract_answer(self, response: str) -> str | None:
        _, mark, answer = response.rpartition("#")
        return answer if mark else None

    def reasoning_end(self, response: str) -> int:
        return response.rfind("#") if "#" in response else len(response)

    def answer_continuation(self, answer: str) -> AnswerContinuation:
        return AnswerContinuation(prefix="#", text=answer, ends_response=True)


def group_of(responses: list[str], *, reference: str, finish_reason: FinishReason = "stop") -> TrajectoryGroup:
    return TrajectoryGroup(
        group_id=7,
        prompt=Prompt(
            prompt_id="p", token_ids=np.array([1], dtype=np.int32), text="?", reference_answer=reference, task="hash"
        ),
        trajectories=tuple(
            single_turn([1, 2], index=index, text=response, finish_reason=finish_reason)
            for index, response in enumerate(responses)
        ),
    )
