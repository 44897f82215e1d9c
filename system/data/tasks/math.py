r"""MATH and other competition problems whose answer is the last `\boxed{}` of the solution."""

from system.data.tasks.boxed import has_box, has_box_without_braces, last_boxed
from system.data.tasks.rows import Row, text_field
from system.data.tasks.text_task import ParsedRow, TextTask

# Training rows whose solution boxes the parts of one answer separately: `answer` would hold only the last part.
ROWS_WITH_SPLIT_ANSWER = frozenset(
    f"train/{row}.json"
    for row in (
        "algebra/152",
        "algebra/1771",
        "intermediate_algebra/1113",
        "intermediate_algebra/1486",
        "intermediate_algebra/1964",
        "precalculus/571",
        "precalculus/722",
        "precalculus/860",
        "precalculus/1040",
        "precalculus/1089",
        "precalculus/1149",
        "precalculus/1269",
    )
)


class MathTask(TextTask):
    name = "math"
    expected_row = "text fields 'problem' (or 'question') and 'answer', or a 'solution' with a \\boxed{} answer"

    def left_out_because(self, row: Row) -> str:
        if row.get("unique_id") in ROWS_WITH_SPLIT_ANSWER:
            return "with an answer in several boxes, left out"
        is_stated = text_field(row, ["answer"]) is not None
        has_null_answer = "answer" in row and row["answer"] is None
        solution = text_field(row, ["solution"]) or ""
        is_empty = has_box(solution) and not is_stated and last_boxed(solution) is None
        return "with an empty box, left out" if has_null_answer or is_empty else ""

    def parse_row(self, row: Row) -> ParsedRow | None:
        question, solution = text_field(row, ["problem", "question"]), text_field(row, ["solution"]) or ""
        stated = text_field(row, ["answer"])
        answer = stated or last_boxed(solution)
        if question is None or answer is None:
            return None
        remark = "with a box without braces, read" if not stated and has_box_without_braces(solution) else ""
        return ParsedRow(question=question, solution=solution, reference_answer=answer, remark=remark)

    def extract_answer(self, response: str) -> str | None:
        return last_boxed(response)
