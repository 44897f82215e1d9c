"""The embedded task: nested expressions from GSM8K, solved line by line.

The prompt is `48+(48/2):`, its solution `48/2=24`, `48+24=72`, `#72` on three lines. The data is shipped in
system/data/chains (see derive.py there).
"""

import dataclasses
from functools import cached_property
from importlib import resources

import numpy as np

from system.data.chains.expressions import Solution, canonical_text, parse_expression, solve
from system.data.chains.redraw import redraw_expression
from system.data.tasks.splits import choose_validation_rows
from system.interfaces import AnswerKind, Split, Tokenizer
from system.records import AnswerContinuation, Problem

ANSWER_MARK = "#"


def _read_expressions(name: str) -> list[str]:
    return resources.files("system.data.chains").joinpath(f"{name}.txt").read_text(encoding="ascii").split()


def _solution_text(solution: Solution) -> str:
    return "\n".join((*solution.lines, f"{ANSWER_MARK}{solution.answer}"))


def _make_problem(problem_id: str, expression: str) -> Problem:
    shape, leaves = parse_expression(expression)
    solution = solve(shape, leaves=leaves)
    return Problem(
        problem_id=problem_id,
        question=expression,
        solution=_solution_text(solution),
        reference_answer=solution.answer,
    )


class Gsm8kChainsTask:
    """`validation_size` training rows are held out. Raises ConfigError when it is negative or takes all of them.

    `max_train_steps` leaves longer chains out of the train split (None: keeps all); the held-out splits stay whole.
    """

    name = "gsm8k_chains"
    answer_kind: AnswerKind = "rational"

    def __init__(self, *, validation_size: int = 500, max_train_steps: int | None = None) -> None:
        self._max_train_steps = max_train_steps
        self._train_expressions = _read_expressions("train")
        self._validation_rows = choose_validation_rows(
            [canonical_text(text) for text in self._train_expressions], validation_size=validation_size
        )

    @cached_property
    def held_out(self) -> frozenset[str]:
        """Canonical texts of the validation and test expressions; no redraw may produce one."""
        validation = {canonical_text(self._train_expressions[row]) for row in self._validation_rows}
        return frozenset(validation | {canonical_text(text) for text in _read_expressions("test")})

    def load(self, split: Split) -> list[Problem]:
        """Problems in the order of GSM8K; `train/00012` and `validation/00012` number the rows of train.txt."""
        if split == "test":
            return [_make_problem(f"test/{row:05d}", text) for row, text in enumerate(_read_expressions("test"))]
        problems = [
            _make_problem(f"{split}/{row:05d}", text)
            for row, text in enumerate(self._train_expressions)
            if (row in self._validation_rows) == (split == "validation")
        ]
        if split == "validation" or self._max_train_steps is None:
            return problems
        # the last line of a solution states the answer, every other one is a step
        return [problem for problem in problems if problem.solution.count("\n") <= self._max_train_steps]

    def redraw(self, problem: Problem, *, rng: np.random.Generator) -> Problem:
        """Same shape, fresh leaf numbers, never a held-out expression; the problem itself when none is found."""
        drawn = redraw_expression(problem.question, rng=rng, excluded=self.held_out)
        if drawn is None:
            return problem
        expression, solution = drawn
        return dataclasses.replace(
            problem, question=expression, solution=_solution_text(solution), reference_answer=solution.answer
        )

    def prompt_text(self, problem: Problem, *, tokenizer: Tokenizer) -> str:
        return f"{problem.question}:"

    def cut_steps(self, response: str) -> list[int]:
        """One step a line, its line break included."""
        ends = [offset + 1 for offset, character in enumerate(response) if character == "\n"]
        return ends if not response or response.endswith("\n") else [*ends, len(response)]

    def extract_answer(self, response: str) -> str | None:
        """What follows `#` on the last line; None when the last line states no answer."""
        last_line = response.rstrip().rpartition("\n")[2]
        if not last_line.startswith(ANSWER_MARK):
            return None
        return last_line.removeprefix(ANSWER_MARK).strip() or None

    def reasoning_end(self, response: str) -> int:
        """Where the last line begins, if it states an answer."""
        if self.extract_answer(response) is None:
            return len(response)
        return response.rstrip().rfind("\n") + 1

    def answer_continuation(self, answer: str) -> AnswerContinuation:
        return AnswerContinuation(prefix=ANSWER_MARK, text=answer, ends_response=True)
