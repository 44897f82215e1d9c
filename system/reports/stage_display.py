"""What a person at the terminal sees of work that goes through many problems: what, how far, how long still.

On stderr, so that stdout holds the result alone. The display never stops the work: when its stream is closed it falls
silent.
"""

import sys
import time
from datetime import timedelta
from typing import TextIO


class StageDisplay:
    """One line that is rewritten on a terminal, else a line every `seconds_between_lines` and at the end of a stage."""

    def __init__(self, *, stream: TextIO | None = None, seconds_between_lines: float = 5.0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._seconds_between_lines = seconds_between_lines
        self._start = time.monotonic()
        self._is_silent = self._stream.closed
        self._is_live = not self._is_silent and self._stream.isatty()
        self._what = ""
        self._total = 0
        self._done = 0
        self._stage_start = self._start
        self._last_line = self._start
        self._is_line_open = False

    def begin(self, what: str, *, total: int = 0) -> None:
        """Another stage over `total` problems; 0 for one whose end cannot be foreseen."""
        self._close_line()
        self._what, self._total, self._done = what, total, 0
        self._stage_start = time.monotonic()
        self._show()

    def advance(self) -> None:
        """One problem of the stage is done."""
        self._done += 1
        is_due = time.monotonic() - self._last_line >= self._seconds_between_lines
        if self._is_live or is_due or self._done == self._total:
            self._show()

    def end(self) -> None:
        """Nothing more is shown."""
        self._close_line()

    def seconds_left(self) -> float | None:
        """At the pace of this stage; None before there is a pace."""
        if not self._done or not self._total:
            return None
        return (time.monotonic() - self._stage_start) / self._done * (self._total - self._done)

    def _show(self) -> None:
        self._last_line = time.monotonic()
        line = f"[{_clock(self._last_line - self._start)}] {self._what}"
        if self._total:
            line += f": {self._done}/{self._total} problems"
        left = self.seconds_left()
        if left is not None and self._done < self._total:
            line += f", {_clock(left)} left"
        self._write(f"\r\x1b[K{line}" if self._is_live else f"{line}\n")
        self._is_line_open = self._is_live

    def _close_line(self) -> None:
        if self._is_line_open:
            self._write("\n")
            self._is_line_open = False

    def _write(self, text: str) -> None:
        if self._is_silent:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a closed pipe, or a closed file object
            self._is_silent = True


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
