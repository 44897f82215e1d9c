"""What a person at the terminal sees while a run goes on: a live display, or single lines where nobody watches.

The display never stops a run: when its stream is closed it falls silent.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from system.reports.bottleneck import bottleneck
from system.reports.metrics import PHASES

# Phases that come round in every update pass too quickly for a line of their own.
PHASES_OF_AN_UPDATE = tuple(phase for phase in PHASES if phase != "evaluate")
SHOWN_METRICS = (
    ("reward/mean", "reward", "{:.3f}"),
    ("train/accuracy", "accuracy", "{:.3f}"),
    ("reward/self_certainty_mean", "certainty", "{:.3f}"),
    ("eval/accuracy_sampled", "held-out", "{:.3f}"),
    ("eval/accuracy_greedy", "held-out greedy", "{:.3f}"),
    ("rollout/tokens_per_second", "rollout tokens/s", "{:,.0f}"),
)


class Display:
    """Phase, update i of N, reward, accuracy, tokens per second, elapsed time, ETA, what the last step waited for."""

    def __init__(
        self,
        *,
        num_updates: int,
        run_folder: Path,
        seconds_left: float | None = None,
        stream: TextIO | None = None,
        seconds_between_lines: float = 5.0,
    ) -> None:
        """Live when `stream` (stdout by default) is a terminal; else a line at most every `seconds_between_lines`.

        `seconds_left`: when run.max_seconds will end the run, from now; None: never.
        """
        self._num_updates = num_updates
        self._seconds_left = seconds_left
        self._run_folder = run_folder
        self._stream = sys.stdout if stream is None else stream
        self._seconds_between_lines = seconds_between_lines
        self._start = time.monotonic()
        self._phase = ""
        self._phase_start = self._start
        self._policy_version = 0
        self._first_update: tuple[int, float] | None = None  # version and time; the ETA is measured from here
        self._shown: dict[str, str] = {}
        self._bottleneck = ""
        self._last_line = float("-inf")
        self._has_unshown_update = False
        self._live: Live | None = None
        self._is_silent = self._stream.closed
        if not self._is_silent and self._stream.isatty():
            console = _Console(file=self._stream)
            self._live = Live(console=console, get_renderable=self._render, refresh_per_second=2)

    def __enter__(self) -> "Display":
        if self._live is None:
            self._write_line(f"run folder {self._run_folder}")
        else:
            self._guard_live(self._live.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._guard_live(self._live.stop)
        self._show_last_update()

    def enter_phase(self, name: str) -> None:
        """The run does something else from now on."""
        self._phase = name
        self._phase_start = time.monotonic()
        if name == "shutdown":
            self._show_last_update()
        if self._live is None and name not in PHASES_OF_AN_UPDATE:
            self._write_line(f"[{_duration(self._elapsed())}] {name}")

    def update(self, policy_version: int, *, metrics: Mapping[str, float]) -> None:
        """An update is done; `metrics` are its reduced values. A value that is absent keeps its last one on show."""
        has_gone_back = policy_version < self._policy_version
        self._policy_version = policy_version
        if self._first_update is None or has_gone_back:
            self._first_update = (policy_version, time.monotonic())
        for name, label, form in SHOWN_METRICS:
            if name in metrics:
                self._shown[label] = form.format(metrics[name])
        self._bottleneck = bottleneck(metrics) or self._bottleneck
        self._has_unshown_update = self._live is None
        is_due = time.monotonic() - self._last_line >= self._seconds_between_lines
        if self._live is not None:
            self._guard_live(self._live.refresh)
        elif is_due or policy_version == self._num_updates or "eval/accuracy_sampled" in metrics:
            self._show_last_update()

    def warn(self, message: str) -> None:
        """A line of its own, above the live display."""
        if self._live is None:
            self._write_line(f"[{_duration(self._elapsed())}] {message}")
        else:
            self._guard_live(lambda: self._live.console.print(Text(message, style="bold red")) if self._live else None)

    def eta_seconds(self) -> float | None:
        """Expected time until the last update at the pace of this session, at most until run.max_seconds.

        None before there is a pace.
        """
        if self._first_update is None or self._policy_version == self._first_update[0]:
            return None
        first_version, first_time = self._first_update
        seconds_per_update = (time.monotonic() - first_time) / (self._policy_version - first_version)
        expected = seconds_per_update * max(self._num_updates - self._policy_version, 0)
        if self._seconds_left is None:
            return expected
        return min(expected, max(self._seconds_left - self._elapsed(), 0.0))

    def _show_last_update(self) -> None:
        if self._has_unshown_update:
            self._has_unshown_update = False
            self._last_line = time.monotonic()
            self._write_line(f"[{_duration(self._elapsed())}] {self._status()}")
            if self._bottleneck:
                self._write_line(f"    {self._bottleneck}")

    def _status(self) -> str:
        shown = [f"{label} {value}" for label, value in self._shown.items()]
        eta = self.eta_seconds()
        left = "" if eta is None else f"ETA {_duration(eta)}"
        return ", ".join(filter(None, [f"update {self._policy_version}/{self._num_updates}", *shown, left]))

    def _render(self) -> RenderableType:
        eta = self.eta_seconds()
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"update {self._policy_version}/{self._num_updates}", style="bold"),
            ProgressBar(total=max(self._num_updates, 1), completed=self._policy_version, width=30),
            Text(f"elapsed {_duration(self._elapsed())}"),
            Text("ETA --:--" if eta is None else f"ETA {_duration(eta)}"),
            Text(f"{self._phase} {time.monotonic() - self._phase_start:.0f} s" if self._phase else "", style="cyan"),
        )
        values = Text("  ").join(
            Text.assemble((f"{label} ", "dim"), (value, "bold")) for label, value in self._shown.items()
        )
        folder = Text(str(self._run_folder), style="dim", overflow="ellipsis", no_wrap=True)
        return Group(head, values, *([Text(self._bottleneck)] if self._bottleneck else []), folder)

    def _elapsed(self) -> float:
        return time.monotonic() - self._start

    def _write_line(self, line: str) -> None:
        if self._is_silent:
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe, or a closed file object
            self._is_silent = True
            _discard_output(self._stream)

    def _guard_live(self, action: Callable[[], None]) -> None:
        if self._is_silent:
            return
        try:
            action()
        except (OSError, ValueError):
            self._is_silent = True
            _discard_output(self._stream)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # rich ends the process here; a run has to outlive its terminal.
        self.quiet = True
        _discard_output(self.file)


def _discard_output(stream: IO[str]) -> None:
    """Lets later prints, and the flush when Python exits, go nowhere instead of failing."""
    try:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    except (OSError, ValueError):  # no descriptor behind it: nothing will be flushed either
        return


def _duration(seconds: float) -> str:
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{remainder:02d}" if hours else f"{minutes}:{remainder:02d}"
