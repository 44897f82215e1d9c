"""What the tasks with written problems share: where rows come from, splits, prompts and steps."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from system.data.chat_template import chat_prompt
from system.data.tasks.boxed import cut_paragraphs, last_box_start
from system.data.tasks.rows import Row, load_hub_rows, read_rows
from system.data.tasks.splits import choose_validation_rows
from system.errors import ConfigError
from system.interfaces import AnswerKind, Split, Tokenizer
from system.records import AnswerContinuation, Problem

END_OF_THOUGHT = "</think>"
ANSWER_PREFIX = f"{END_OF_THOUGHT}\n\nThe final answer is \\boxed{{"  # arXiv 2505.20561 appends `</think>` and asks
INSTRUCTION = "Reason step by step, then state the final answer within \\boxed{}."


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRow:
    question: str
    solution: str
    reference_answer: str


class TextTask(ABC):
    """Rows come from local files where paths are given, otherwise from the hub data set.

    Nothing is read before `load`, so that a worker without the data can still prompt, cut and extract.
    """

    name: str
    answer_kind: AnswerKind = "math"
    instruction = INSTRUCTION
    expected_row: str  # for messages: what a row has to hold

    def __init__(
        self,
        *,
        train_path: str | None = None,
        test_path: str | None = None,
        dataset: str | None = None,
        validation_size: int = 500,
    ) -> None:
        self._paths = {"train": train_path, "test": test_path}
        self._dataset = dataset
        self._validation_size = validation_size

    @abstractmethod
    def parse_row(self, row: Row) -> ParsedRow | None:
        """The row's question, solution and answer, or None when they are not there."""

    @abstractmethod
    def extract_answer(self, response: str) -> str | None: ...

    def reasoning_end(self, response: str) -> int:
        r"""Where `</think>` ends the reasoning; without it, where the last `\boxed{}` begins."""
        end_of_thought = response.rfind(END_OF_THOUGHT)
        return end_of_thought if end_of_thought >= 0 else last_box_start(response)

    def answer_continuation(self, answer: str) -> AnswerContinuation:
        return AnswerContinuation(prefix=ANSWER_PREFIX, text=f"{answer}}}", ends_response=False)

    def is_usable(self, row: Row) -> bool:
        """False for rows that are known to be no use and are left out without an error."""
        return True

    def load(self, split: Split) -> list[Problem]:
        """Problems in the order of the file, numbered by its rows. Raises ConfigError when a row is malformed."""
        if split == "test":
            return [self._problem("test", number, row) for number, row in self._read("test")]
        rows = self._read("train")
        problems = [self._problem(split, number, row) for number, row in rows]
        validation = choose_validation_rows(
            [" ".join(problem.question.split()) for problem in problems], validation_size=self._validation_size
        )
        return [problem for place, problem in enumerate(problems) if (place in validation) == (split == "validation")]

    def _read(self, source: Split) -> list[tuple[int, ParsedRow]]:
        """Usable rows with their numbers in the file, from 0."""
        key, path = f"task.{source}_path", self._paths[source]
        if path is not None:
            rows, origin = read_rows(Path(path), key=key, expected=self.expected_row), path
        elif self._dataset is not None:
            rows, origin, key = load_hub_rows(self._dataset, split=source), self._dataset, "task.dataset"
        else:
            raise ConfigError(
                key,
                given=None,
                expected=f"a .jsonl or .parquet file for task {self.name}",
                fix=f"set {key}, or task.dataset to the name of a hub data set",
            )
        parsed = []
        for number, row in enumerate(rows):
            if not self.is_usable(row):
                continue
            content = self.parse_row(row)
            if content is None:
                raise ConfigError(
                    key, given=f"{origin}, row {number + 1}", expected=self.expected_row, fix="fix or remove that row"
                )
            parsed.append((number, content))
        return parsed

    def _problem(self, split: Split, number: int, row: ParsedRow) -> Problem:
        return Problem(
            problem_id=f"{split}/{number:05d}",
            question=row.question,
            solution=row.solution,
            reference_answer=row.reference_answer,
        )

    def redraw(self, problem: Problem, *, rng: np.random.Generator) -> Problem:
        """Written problems have no fresh variant."""
        return problem

    def prompt_text(self, problem: Problem, *, tokenizer: Tokenizer) -> str:
        return chat_prompt(problem.question, instruction=self.instruction, tokenizer=tokenizer)

    def cut_steps(self, response: str) -> list[int]:
        """One step a paragraph."""
        return cut_paragraphs(response)
