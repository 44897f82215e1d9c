"""The display says what, how far and how long still, and outlives its stream."""

import io
import re
import time

import pytest

from system.reports.stage_display import StageDisplay


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_without_a_terminal_are_few_and_plain() -> None:
    stream = io.StringIO()
    progress = StageDisplay(stream=stream, seconds_between_lines=60)
    progress.begin("starting")
    progress.begin("scoring", total=100)
    for _ in range(100):
        progress.advance()
    progress.end()
    assert [re.sub(r"\d+:\d\d:\d\d", "T", line) for line in stream.getvalue().splitlines()] == [
        "[T] starting",
        "[T] scoring: 0/100 problems",
        "[T] scoring: 100/100 problems",
    ]


def test_a_line_that_is_due_says_how_long_still() -> None:
    stream = io.StringIO()
    progress = StageDisplay(stream=stream, seconds_between_lines=0)
    progress.begin("scoring", total=4)
    assert progress.seconds_left() is None
    time.sleep(0.05)
    progress.advance()
    assert progress.seconds_left() == pytest.approx(0.15, rel=0.8)
    assert re.search(r"scoring: 1/4 problems, 0:00:0\d left\n$", stream.getvalue())


def test_a_terminal_shows_one_line_for_each_stage() -> None:
    stream = Terminal()
    progress = StageDisplay(stream=stream)
    progress.begin("sampling", total=2)
    progress.advance()
    progress.advance()
    progress.begin("comparing answers", total=1)
    progress.advance()
    progress.end()
    assert stream.getvalue().count("\n") == 2
    assert stream.getvalue().count("\r") == 5


def test_a_closed_stream_stops_nothing() -> None:
    stream = io.StringIO()
    progress = StageDisplay(stream=stream, seconds_between_lines=0)
    stream.close()
    progress.begin("sampling", total=1)
    progress.advance()
    progress.end()
    StageDisplay(stream=stream).begin("sampling")
