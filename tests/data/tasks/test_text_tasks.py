"""GSM8K and MATH as written problems: rows, splits, prompts, steps, answers, and what bad files say."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import pyarrow
import pyarrow.parquet
import pytest

from system.config.machine import check_data_files
from system.config.schema import TaskConfig
from system.data.character_tokenizer import build_character_tokenizer
from system.data.tasks import make_task
from system.data.tasks.boxed import cut_paragraphs, last_boxed
from system.data.tasks.gsm8k import Gsm8kTask
from system.data.tasks.math import ROWS_WITH_SPLIT_ANSWER, MathTask
from system.data.tasks.text_task import INSTRUCTION
from system.errors import ConfigError
from system.interfaces import AnswerKind

DATA = Path(__file__).parents[3] / ".." / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the public data sets are not beside the repository")
GOOD_ROW = {"question": "One and one?", "answer": "It is <<1+1=2>>2.\n#### 1,002"}


def write_lines(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{72}.", "72"),
        (r"\boxed{1} then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {x^{2}}", "x^{2}"),
        (r"\fbox{3}", "3"),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{}", None),
        ("no box", None),
        (r"\boxed{4} and then \boxed{}", "4"),
        (r"\boxed{4} and then \boxed{ \, }", "4"),
        (r"\boxed{4} and then \boxed{\text{}}", "4"),
        (r"\boxed{4}. I put it in \boxed{...}", "4"),
        ("\\boxed{4}\n% \\boxed{5}\n", "4"),
        (r"\boxed{4} % or \boxed{5}", "4"),
        (r"so $x=4$ % \boxed{5}", None),
        (r"so 50 % of them, \boxed{5}", "5"),
        (r"so 50% of them, \boxed{5}", "5"),
        (r"so 50\% \boxed{5}", "5"),
        (r"so $\boxed 2$.", "2"),
        (r"so $\boxed2$.", "2"),
        (r"so $\boxed -12.5$", "-12.5"),
        (r"so \boxed 2.", "2"),
        (r"so \boxed 2 apples", "2"),
        (r"so \boxed \frac12$", r"\frac12"),
        (r"so $\boxed x$", "x"),
        (r"\boxed{4}, as \boxed asks for", "4"),
        (r"\boxedx{4}", None),
    ],
)
def test_last_box_is_read_with_balanced_braces(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


@pytest.mark.parametrize("text", ["\\boxed{", "\\boxed{}", "\\boxed ", " % ", "} % ", "\\boxed{} %"])
def test_megabyte_of_boxes_is_read_in_linear_time(text: str) -> None:
    assert last_boxed(text * (1_000_000 // len(text))) is None


def test_paragraphs_are_steps_and_short_ones_join_the_next() -> None:
    long = "x" * 40
    response = f"{long}\n\nshort\n \n{long}\n\n{long}"
    assert cut_paragraphs(response) == [42, 42 + 8 + 42, len(response)]
    assert cut_paragraphs("one line") == [8]
    assert cut_paragraphs("") == []


def test_gsm8k_answer_is_the_box_or_what_follows_the_mark() -> None:
    task = Gsm8kTask()
    assert task.extract_answer("thus\n#### 12\n") == "12"
    assert task.extract_answer("#### 12\nbut no: \\boxed{13}") == "13"
    assert task.extract_answer("**#### 12**\nbye") == "12"
    assert task.extract_answer("12") is None


def test_gsm8k_rows_lose_annotations_and_thousands_commas(tmp_path: Path) -> None:
    task = Gsm8kTask(test_path=write_lines(tmp_path / "test.jsonl", [GOOD_ROW]))
    (problem,) = task.load("test")
    assert (problem.problem_id, problem.solution, problem.reference_answer) == ("test/00000", "It is 2.", "1002")


def test_parquet_is_read_like_json_lines(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD_ROW]), tmp_path / "test.parquet")
    lines = Gsm8kTask(test_path=write_lines(tmp_path / "test.jsonl", [GOOD_ROW])).load("test")
    assert Gsm8kTask(test_path=str(tmp_path / "test.parquet")).load("test") == lines


def test_validation_rows_are_held_out_of_training_whatever_their_order(tmp_path: Path) -> None:
    rows: list[object] = [{"question": f"question {number}", "answer": f"#### {number}"} for number in range(20)]
    one = Gsm8kTask(train_path=write_lines(tmp_path / "one.jsonl", rows), validation_size=5)
    two = Gsm8kTask(train_path=write_lines(tmp_path / "two.jsonl", rows[::-1]), validation_size=5)
    held_out = {problem.question for problem in one.load("validation")}
    assert len(held_out) == 5
    assert held_out == {problem.question for problem in two.load("validation")}
    assert held_out.isdisjoint(problem.question for problem in one.load("train"))
    assert len(one.load("train")) == 15


def test_math_leaves_out_rows_without_a_whole_answer(tmp_path: Path) -> None:
    rows: list[object] = [
        {"problem": "a", "solution": "", "answer": None, "unique_id": "train/number_theory/7115.json"},
        {"problem": "b", "solution": "", "answer": "1", "unique_id": sorted(ROWS_WITH_SPLIT_ANSWER)[0]},
        {"problem": "c", "solution": "so \\boxed{4}"},
        {"problem": "d", "answer": 27.0},
    ]
    problems = MathTask(test_path=write_lines(tmp_path / "test.jsonl", rows)).load("test")
    assert [(problem.problem_id, problem.reference_answer) for problem in problems] == [
        ("test/00002", "4"),
        ("test/00003", "27"),
    ]


def test_math_boxes_without_braces_are_read_and_empty_ones_left_out_and_both_are_counted(tmp_path: Path) -> None:
    rows: list[object] = [
        {"problem": "a", "solution": "so $\\boxed 2$."},
        {"problem": "b", "solution": "so $\\boxed{}$."},
        {"problem": "c", "solution": "so $\\boxed{3}$.", "answer": None},
        {"problem": "d", "solution": "so $\\boxed{5}$."},
    ]
    task = MathTask(test_path=write_lines(tmp_path / "test.jsonl", rows))
    assert [problem.reference_answer for problem in task.load("test")] == ["2", "5"]
    (report,) = task.row_reports
    assert report.counts == (("with a box without braces, read", 1), ("with an empty box, left out", 2))
    assert report.lines()[0].endswith(
        "2 problems from 4 rows; 1 with a box without braces, read; 2 with an empty box, left out"
    )


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json", "line 2, expected one JSON object a line"),
        ('{"problem": "?"}', "row 2, expected text fields"),
        ('{"problem": "?", "answer": NaN}', "row 2, expected text fields"),
        ('{"problem": "?", "answer": "nan"}', "row 2, expected an answer that others can be compared with, not 'nan'"),
        ('{"problem": "?", "answer": -Infinity}', "row 2, expected text fields"),
    ],
)
def test_bad_row_among_many_is_left_out_and_named_up_to_the_share(bad: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    good = [json.dumps({"problem": f"p{number}", "answer": str(number)}) for number in range(99)]
    path.write_text("\n".join([good[0], bad, *good[1:]]), encoding="utf-8")
    task = MathTask(test_path=str(path), max_bad_rows_share=0.01)
    assert len(task.load("test")) == 99
    (report,) = task.row_reports
    assert len(report.bad_rows) == 1
    assert f"1 malformed, left out (first: {message}" in report.lines()[0]
    with pytest.raises(ConfigError, match=r"line 2|row 2.*1 of 100 rows are malformed.*task\.max_bad_rows_share"):
        MathTask(test_path=str(path), max_bad_rows_share=0.009).load("test")


def test_home_folder_is_expanded_where_the_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_lines(tmp_path / "x.jsonl", [GOOD_ROW, GOOD_ROW])
    config = TaskConfig(name="gsm8k", train_path="~/x.jsonl", test_path="~/x.jsonl", validation_size=0)
    check_data_files(config)
    task = make_task(config)
    assert [len(task.load(split)) for split in ("train", "validation", "test")] == [2, 0, 2]


def test_prompt_is_plain_without_a_chat_template_and_chat_with_one(tmp_path: Path) -> None:
    task = Gsm8kTask(test_path=write_lines(tmp_path / "test.jsonl", [GOOD_ROW]))
    (problem,) = task.load("test")
    tokenizer = build_character_tokenizer(max_length=64)
    assert task.prompt_text(problem, tokenizer=tokenizer) == f"{INSTRUCTION}\n\nProblem: One and one?\n\nSolution:"
    tokenizer.chat_template = (
        "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert task.prompt_text(problem, tokenizer=tokenizer) == f"[system]{INSTRUCTION}[user]One and one?[assistant]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"task\.test_path: given '.*test\.jsonl', expected a file that exists"),
        ("", r"task\.test_path: given '.* without a row'"),
        ("{}\n", r"task\.test_path: given '.*, row 1', expected text fields 'question' and 'answer'"),
        ('{"question": "?", "answer": "5"}\n', r"task\.test_path: given '.*, row 1', expected .*####"),
        ("[1]\n", r"task\.test_path: given '.*, line 1', expected .*no JSON object"),
        ("\n{not json\n", r"task\.test_path: given '.*, line 2', expected one JSON object a line"),
        (b"\xff\xfe\n", r"task\.test_path: given '.*, line 1', expected .*UTF-8"),
    ],
)
def test_bad_file_is_named_with_key_place_and_fix(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=message + ".*Fix: "):
        Gsm8kTask(test_path=str(path)).load("test")


def test_other_wrong_sources_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\n")
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"task\.train_path: given .*ends in \.jsonl or \.parquet"):
        Gsm8kTask(train_path=str(tmp_path / "rows.csv")).load("train")
    with pytest.raises(ConfigError, match=r"task\.train_path: given .*expected a Parquet file"):
        Gsm8kTask(train_path=str(tmp_path / "rows.parquet")).load("train")
    with pytest.raises(ConfigError, match=r"task\.train_path: given None"):
        MathTask().load("train")
    with pytest.raises(ConfigError, match=r"task\.validation_size: given 500"):
        Gsm8kTask(train_path=write_lines(tmp_path / "few.jsonl", [GOOD_ROW])).load("train")


def test_hub_data_set_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"task\.dataset: given './absent:main'"):
        Gsm8kTask(dataset="./absent:main").load("test")


def test_data_set_folder_is_read_through_the_datasets_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "grade_school"
    folder.mkdir()
    write_lines(folder / "test.jsonl", [GOOD_ROW])
    (problem,) = Gsm8kTask(dataset=str(folder)).load("test")
    assert problem.reference_answer == "1002"


def test_embedded_task_refuses_files_it_would_ignore() -> None:
    with pytest.raises(ConfigError, match=r"task\.train_path: given 'x\.jsonl', expected null"):
        make_task(TaskConfig(name="gsm8k_chains", train_path="x.jsonl"))


@pytest.mark.parametrize("name", get_args(get_type_hints(TaskConfig)["name"]))
def test_every_task_is_made_by_its_name(name: str) -> None:
    task = make_task(TaskConfig(name=name))  # type: ignore[arg-type]
    assert task.name == name
    assert task.answer_kind in get_args(AnswerKind)


@needs_data
def test_gsm8k_as_published() -> None:
    task = Gsm8kTask(train_path=str(DATA / "gsm8k" / "train.jsonl"), test_path=str(DATA / "gsm8k" / "test.jsonl"))
    assert [len(task.load(split)) for split in ("train", "validation", "test")] == [6973, 500, 1319]
    assert task.load("test")[0].reference_answer == "18"


@needs_data
def test_math_as_published() -> None:
    task = MathTask(train_path=str(DATA / "math" / "train.jsonl"), test_path=str(DATA / "math" / "math500_test.jsonl"))
    assert [len(task.load(split)) for split in ("train", "validation", "test")] == [6986, 500, 500]
    for problem in task.load("test"):
        assert task.extract_answer(problem.solution) == problem.reference_answer
