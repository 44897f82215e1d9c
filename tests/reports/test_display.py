"""The display shows what matters, stays within its rate without a terminal, and outlives its stream."""

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from system.reports.display import Display

METRICS = {"reward/mean": 0.25, "train/accuracy": 0.5, "rollout/tokens_per_second": 8765.4, "learner/entropy": 1.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_without_a_terminal_are_few_and_plain() -> None:
    stream = io.StringIO()
    with Display(num_updates=100, run_folder=Path("runs/x"), stream=stream, seconds_between_lines=60) as progress:
        progress.enter_phase("start")
        for version in range(1, 101):
            for phase in ("rollout", "train", "weight_sync"):
                progress.enter_phase(phase)
            progress.update(version, metrics=METRICS)
        progress.enter_phase("shutdown")
    lines = stream.getvalue().splitlines()
    assert [re.sub(r"\d+:\d\d", "T", line) for line in lines] == [
        "run folder runs/x",
        "[T] start",
        "[T] update 1/100, reward 0.250, accuracy 0.500, rollout tokens/s 8,765",
        "[T] update 100/100, reward 0.250, accuracy 0.500, rollout tokens/s 8,765, ETA T",
        "[T] shutdown",
    ]
    assert "\x1b" not in stream.getvalue()


def test_evaluation_always_gets_a_line_and_stays_on_show() -> None:
    stream = io.StringIO()
    progress = Display(num_updates=9, run_folder=Path("runs/x"), stream=stream, seconds_between_lines=60)
    progress.update(1, metrics=METRICS)
    progress.update(2, metrics={**METRICS, "eval/accuracy_sampled": 0.325})
    progress.update(9, metrics=METRICS)
    assert [line.count("held-out 0.325") for line in stream.getvalue().splitlines()] == [0, 1, 1]


WAITED = {"learner/busy_fraction": 0.4, "wait/checkpoint_fraction": 0.6}


@pytest.mark.parametrize("is_terminal", [False, True])
def test_what_a_step_waited_for_is_shown_until_the_next_step_says_otherwise(is_terminal: bool) -> None:
    stream = Terminal() if is_terminal else io.StringIO()
    with Display(num_updates=2, run_folder=Path("runs/x"), stream=stream, seconds_between_lines=0) as progress:
        progress.update(1, metrics={**METRICS, **WAITED})
        progress.update(2, metrics={**METRICS, "learner/busy_fraction": 1.0})
    shown = stream.getvalue()
    first, second = "learner waited 60 % for a checkpoint; trained 40 %", "learner trained 100 % of the step"
    assert 0 < shown.index(first) < shown.index(second)


def test_eta_follows_the_pace_of_this_session() -> None:
    progress = Display(num_updates=110, run_folder=Path("runs/x"), stream=io.StringIO())
    progress.update(100, metrics={})
    assert progress.eta_seconds() is None
    time.sleep(0.05)
    progress.update(105, metrics={})
    assert progress.eta_seconds() == pytest.approx(0.05, rel=0.8)


def test_eta_is_never_later_than_the_end_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = Display(num_updates=100, run_folder=Path("runs/x"), stream=io.StringIO(), seconds_left=640.0)
    now[0] += 100
    display.update(1, metrics={})
    now[0] += 30
    display.update(2, metrics={})
    assert display.eta_seconds() == 510.0  # not 98 updates of 30 s
    now[0] += 600
    assert display.eta_seconds() == 0.0


def test_the_last_update_of_a_run_that_time_ends_has_a_line() -> None:
    stream = io.StringIO()
    with Display(num_updates=100, run_folder=Path("runs/x"), stream=stream, seconds_between_lines=60) as display:
        for version in range(1, 22):
            display.enter_phase("train")
            display.update(version, metrics=METRICS)
        display.enter_phase("shutdown")
    lines = [re.sub(r"\d+:\d\d", "T", line) for line in stream.getvalue().splitlines()]
    assert lines[-2].startswith("[T] update 21/100, reward 0.250")
    assert lines[-1] == "[T] shutdown"
    assert sum("update 21/100" in line for line in lines) == 1


def test_terminal_shows_the_live_display() -> None:
    stream = Terminal()
    with Display(num_updates=10, run_folder=Path("runs/x"), stream=stream) as progress:
        progress.enter_phase("rollout")
        progress.update(3, metrics=METRICS)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    for expected in ("update 3/10", "reward 0.250", "accuracy 0.500", "ETA", "rollout 0 s"):
        assert expected in shown


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_closed_stream_does_not_stop_the_run(stream: io.StringIO) -> None:
    with Display(num_updates=10, run_folder=Path("runs/x"), stream=stream, seconds_between_lines=0) as progress:
        stream.close()
        progress.enter_phase("start")
        progress.update(3, metrics=METRICS)
        progress.update(4, metrics=METRICS)


WRITES_TO_A_CLOSED_PIPE = """
import pathlib, sys, time
from system.reports.display import Display
with Display(num_updates=9, run_folder=pathlib.Path("x"), seconds_between_lines=0) as progress:
    sys.stdin.readline()
    for version in range(10):
        progress.update(version, metrics={})
print("after")
sys.stderr.write("finished")
"""


def test_broken_pipe_leaves_later_prints_and_the_exit_code_alone() -> None:
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_TO_A_CLOSED_PIPE],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write_end)
    os.close(read_end)
    _, errors = process.communicate("go\n", timeout=30)
    assert errors == "finished"
    assert process.returncode == 0
