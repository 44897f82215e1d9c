"""How often the learner group was lost in this session, and what that cost; logged by the controller."""

from __future__ import annotations

import time

from system.errors import LearnerDiedError
from system.metrics import MetricSet


class LearnerRestarts:
    """Bounds the restarts of a session."""

    def __init__(self, *, max_restarts: int) -> None:
        self.max_restarts = max_restarts
        self.num_restarts = 0
        self._lost_at: float | None = None  # until the next update is done

    def note_loss(self, loss: Exception) -> None:
        """One more restart follows. Raises LearnerDiedError when that would be too many."""
        if self.num_restarts >= self.max_restarts:
            raise LearnerDiedError(
                f"{loss}; the learner was started again {self.num_restarts} times already, as often as "
                "learner.max_restarts allows. Continue from the last checkpoint with 'credence train --resume RUN_DIR'"
            ) from loss
        self.num_restarts += 1
        if self._lost_at is None:
            self._lost_at = time.perf_counter()

    def add_metrics(self, metrics: MetricSet) -> None:
        """Of an update that is done."""
        metrics.add("learner/num_restarts", self.num_restarts)
        if self._lost_at is not None:
            metrics.add("learner/recovery_seconds", time.perf_counter() - self._lost_at)
            self._lost_at = None
