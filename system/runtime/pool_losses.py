"""What a pool has lost: which losses count towards max_restarts, and when growing is given up. Used by worker_pool.py.

| who is lost                                        | counts                                                       |
|----------------------------------------------------|--------------------------------------------------------------|
| a worker that serves, or that replaces another one | towards max_restarts                                         |
| one that was added, before it ever served          | towards MAX_FAILED_ADDITIONS in a row; then nobody is added  |
| one that was let go, while it finishes its calls   | no                                                           |
"""

from __future__ import annotations

import logging

from system.runtime.pool_member import PoolMember, PoolSettings, WorkerState
from system.runtime.worker_failures import PoolExhaustedError

_log = logging.getLogger(__name__)

MAX_FAILED_ADDITIONS = 3


class PoolLosses:
    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._num_failed_additions = 0
        self.num_counted = 0
        self.last_reason = ""

    def count(self, member: PoolMember, *, reason: str) -> bool:
        """Count the loss of a worker by the state that it is in; True: no more are to be added for now."""
        first_line = reason.partition("\n")[0]  # Ray's go on with advice
        self.last_reason = f"{member.name}: {first_line}"
        if member.state is WorkerState.DRAINING:
            _log.warning("lost %s; it was let go anyway", self.last_reason)
            return False
        if member.is_addition and member.state is not WorkerState.SERVING:
            self._num_failed_additions += 1
            _log.warning("%s, which was added; %d of at most %d", self.last_reason, *self._additions())
            if self._num_failed_additions < MAX_FAILED_ADDITIONS:
                return False
            self._num_failed_additions = 0
            return True
        self.num_counted += 1
        _log.warning("lost %s; %d of at most %d", self.last_reason, self.num_counted, self._settings.max_restarts)
        return False

    def note_served(self, member: PoolMember) -> None:
        """An addition made it: the next ones may fail as often again."""
        if member.is_addition:
            self._num_failed_additions = 0

    def exhausted(self) -> PoolExhaustedError | None:
        """The error that ends the run, once too many are lost."""
        if self.num_counted <= self._settings.max_restarts:
            return None
        return PoolExhaustedError(
            f"{self.num_counted} {self._settings.kind}s were lost in this run, more than {self._settings.section}."
            f"max_restarts={self._settings.max_restarts}. The last: {self.last_reason}"
        )

    def _additions(self) -> tuple[int, int]:
        return self._num_failed_additions, MAX_FAILED_ADDITIONS
