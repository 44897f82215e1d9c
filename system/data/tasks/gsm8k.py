"""GSM8K: grade-school word problems; the answer is what follows `####` on the last line of the worked solution."""

import re

from system.data.tasks.boxed import last_boxed
from system.data.tasks.rows import Row, text_field
from system.data.tasks.text_task import ParsedRow, TextTask

ANSWER_MARK = "####"
_ANNOTATION = re.compile(r"<<[^<>]*>>")


class Gsm8kTask(TextTask):
    name = "gsm8k"
    expected_row = f"text fields 'question' and 'answer', the answer ending in '{ANSWER_MARK} number'"

    def parse_row(self, row: Row) -> ParsedRow | None:
        question, worked = text_field(row, ["question"]), text_field(row, ["answer"])
        if question is None or worked is None:
            return None
        solution, mark, answer = worked.rpartition(ANSWER_MARK)
        answer = answer.strip().replace(",", "")
        if not mark or not answer:
            return None
        return ParsedRow(question=question, solution=_ANNOTATION.sub("", solution).strip(), reference_answer=answer)

    def extract_answer(self, response: str) -> str | None:
        r"""The last `\boxed{}`; without one, what follows the last `####` on its line."""
        boxed = last_boxed(response)
        if boxed is not None:
            return boxed
        _, mark, rest = response.rpartition(ANSWER_MARK)
        return (rest.partition("\n")[0].strip(" \t\r*") or None) if mark else None
