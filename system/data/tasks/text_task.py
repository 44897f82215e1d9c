"""What the tasks with written problems share: where rows come from, splits, prompts and steps."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from system.data.chat_template import chat_prompt
from system.data.tasks.boxed import cut_paragraphs, last_box_start
from system.data.tasks.rows import BadRow, Row, RowReport, load_hub_rows, read_rows
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
    remark: str = ""  # what is counted about the row, e.g. that its answer was written in an unusual way


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
        max_bad_rows_share: float = 0.0,
    ) -> None:
        self._paths = {"train": train_path, "test": test_path}
        self._dataset = dataset
        self._validation_size = validation_size
        self._max_bad_rows_share = max_bad_rows_share
        self._problems_of: dict[Split, list[tuple[int, ParsedRow]]] = {}
        self._reports: dict[Split, RowReport] = {}

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

    def left_out_because(self, row: Row) -> str:
        """Why a row is known to be of no use, for a count; "" for the others."""
        return ""

    @property
    def row_reports(self) -> tuple[RowReport, ...]:
        """What the files that were read so far held."""
        return tuple(self._reports.values())

    def load(self, split: Split) -> list[Problem]:
        """Problems in the order of the file, numbered by its rows.

        Raises ConfigError when a file cannot be read, or when a larger share of its rows than allowed is malformed.
        """
        if split == "test":
            return [self._problem("test", number, row) for number, row in self._read("test")]
        rows = self._read("train")
        problems = [self._problem(split, number, row) for number, row in rows]
        validation = choose_validation_rows(
            [" ".join(problem.question.split()) for problem in problems], validation_size=self._validation_size
        )
        return [problem for place, problem in enumerate(problems) if (place in validation) == (split == "validation")]

    def _read(self, source: Split) -> list[tuple[int, ParsedRow]]:
        """Usable rows with their numbers in the file, from 0; read once."""
        if source not in self._problems_of:
            key, path = f"task.{source}_path", self._paths[source]
            if path is not None:
                rows, origin = read_rows(path, key=key, expected=self.expected_row), path
            elif self._dataset is not None:
                rows, origin, key = load_hub_rows(self._dataset, split=source), self._dataset, "task.dataset"
            else:
                raise ConfigError(
                    key,
                    given=None,
                    expected=f"a .jsonl or .parquet file for task {self.name}",
                    fix=f"set {key}, or task.dataset to the name of a hub data set",
                )
            self._problems_of[source], self._reports[source] = self._parse(rows, key=key, origin=origin)
        return self._problems_of[source]

    def _parse(
        self, rows: Sequence[Row | BadRow], *, key: str, origin: str
    ) -> tuple[list[tuple[int, ParsedRow]], RowReport]:
        parsed: list[tuple[int, ParsedRow]] = []
        remarks: Counter[str] = Counter()
        bad_rows: list[BadRow] = []
        for number, row in enumerate(rows):
            if isinstance(row, BadRow):
                bad_rows.append(row)
                continue
            reason = self.left_out_because(row)
            if reason:
                remarks[reason] += 1
                continue
            content = self.parse_row(row)
            if content is None:
                bad_rows.append(BadRow(place=f"row {number + 1}", expected=self.expected_row))
                continue
            if not self._is_reference(content.reference_answer):
                expected = f"an answer that others can be compared with, not {content.reference_answer!r}"
                bad_rows.append(BadRow(place=f"row {number + 1}", expected=expected))
                continue
            parsed.append((number, content))
            if content.remark:
                remarks[content.remark] += 1
        if len(bad_rows) > self._max_bad_rows_share * len(rows):
            raise ConfigError(
                key,
                given=f"{origin}, {bad_rows[0].place}",
                expected=f"{bad_rows[0].expected} ({len(bad_rows)} of {len(rows)} rows are malformed)",
                fix="fix or remove that row, or raise task.max_bad_rows_share",
            )
        report = RowReport(
            origin=origin,
            num_rows=len(rows),
            num_problems=len(parsed),
            counts=tuple(sorted(remarks.items())),
            bad_rows=tuple(bad_rows),
        )
        return parsed, report

    def _is_reference(self, text: str) -> bool:
        """False for what no answer can be compared with."""
        return self.answer_kind != "math" or text.strip(" .$+-").lower() not in ("", "nan", "inf", "null")

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
