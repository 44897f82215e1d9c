"""Triplets, the synthetic task of the BARL paper: produce the prompt's character three times in a row.

Characters 0, 1 and 2; prompts 0 and 1 are trained on, prompt 2 is held out. One character is one token and one step,
and a response has as many as rollout.max_completion_tokens allows: there is no end token. What an answer such as
`222` would pay at a step can be read from the response, so no model has to be asked.

Source: Zhang et al., Beyond Markovian, arXiv 2505.20561v2.
"""

import numpy as np

from system.interfaces import AnswerKind, Split, Tokenizer
from system.records import AnswerContinuation, BoolArray, Problem

_PROMPTS: dict[Split, str] = {"train": "01", "validation": "01", "test": "2"}


class TripletsTask:
    name = "triplets"
    answer_kind: AnswerKind = "contains"

    def load(self, split: Split) -> list[Problem]:
        return [
            Problem(
                problem_id=f"{split}/{character}",
                question=character,
                solution=character * 3,
                reference_answer=character * 3,
            )
            for character in _PROMPTS[split]
        ]

    def redraw(self, problem: Problem, *, rng: np.random.Generator) -> Problem:
        """There is nothing to draw anew."""
        return problem

    def prompt_text(self, problem: Problem, *, tokenizer: Tokenizer) -> str:
        return problem.question

    def cut_steps(self, response: str) -> list[int]:
        """One step a character."""
        return list(range(1, len(response) + 1))

    def extract_answer(self, response: str) -> str | None:
        """All of it: the answer may stand anywhere."""
        return response or None

    def reasoning_end(self, response: str) -> int:
        return len(response)

    def answer_continuation(self, answer: str) -> AnswerContinuation:
        return AnswerContinuation(prefix="", text=answer, ends_response=False)

    def payments(self, response: str, *, answer: str) -> BoolArray:
        """bool[S]: at each step, whether the answer ends there (windows may overlap)."""
        return np.array([response[:end].endswith(answer) for end in self.cut_steps(response)], dtype=np.bool_)
