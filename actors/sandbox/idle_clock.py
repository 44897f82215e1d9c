"""The wall clock behind a limit on computing time: it ends what sleeps, not what waits for a processor."""

import time
from contextlib import suppress

_MAX_WINDOWS = 30  # whatever a process claims to do, it ends after this many times its limit


class IdleClock:
    """Watches a process that has a limit on computing time and has not ended within as much wall time.

    Time is cut into windows of `limit_seconds`. A process that neither ran nor waited for a processor for half of a
    window is taken to hang. Where the kernel does not tell (no /proc/PID/schedstat), only the last window ends it.
    """

    def __init__(self, process_id: int, *, limit_seconds: float) -> None:
        self._process_id = process_id
        self._limit_seconds = limit_seconds
        self._started = time.monotonic()
        self._window: tuple[float, float] | None = None  # when it began, and the seconds busy until then

    def next_deadline(self) -> float:
        """Called at a deadline: the next one, or now or earlier when the process hangs."""
        now = time.monotonic()
        if now >= self._started + _MAX_WINDOWS * self._limit_seconds:
            return now
        busy = _busy_seconds(self._process_id)
        if self._window is not None and busy is not None:
            start, busy_before = self._window
            # A process that waits for its turn now is not idle, and that wait is not in its figures yet.
            if busy - busy_before < (now - start) / 2 and not _is_runnable(self._process_id):
                return now
        self._window = None if busy is None else (now, busy)
        return now + self._limit_seconds


def _busy_seconds(process_id: int) -> float | None:
    """Seconds that the main thread has run or waited for a processor."""
    with suppress(OSError, ValueError), open(f"/proc/{process_id}/schedstat", "rb") as file:
        running, waiting, _ = file.read().split()
        return (int(running) + int(waiting)) / 1e9
    return None


def _is_runnable(process_id: int) -> bool:
    with suppress(OSError), open(f"/proc/{process_id}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"R"
    return False
