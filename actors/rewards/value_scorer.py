"""A scorer whose class gives a number for each completion: the built-in simple ones, and a user's own.

A user's own class is written like this, and named in the configuration as `package.module:ShortAnswers`:

    class ShortAnswers:
        Options = ShortAnswersOptions  # a dataclass of system.fields.key; without it there are no options

        def __init__(self, options): ...  # only with Options

        def score(self, group) -> list[float]: ...  # None or NaN: no verdict, the completion is left out
"""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from system.config.imports import label_of
from system.config.options import make_options
from system.config.schema import RewardTermConfig
from system.config.scorers import value_scorer_class
from system.fields import NoOptions
from system.records import RewardTerm, TrajectoryGroup

_log = logging.getLogger(__name__)


class ValueScorer:
    """Its class may raise whatever it likes: the terms of that group are invalid then, with the reason `raised`."""

    def __init__(self, term: RewardTermConfig) -> None:
        """Raises ConfigError when the class cannot be had or has no such options."""
        self.name = label_of(term.scorer)
        kind = value_scorer_class(term.scorer, key="reward.terms")
        options_kind = getattr(kind, "Options", NoOptions)
        options = make_options(options_kind, term.options, prefix=f"options of {term.scorer}")
        self._scorer: Any = kind() if options_kind is NoOptions else kind(options)
        self._has_raised = False

    def score(self, group: TrajectoryGroup) -> tuple[RewardTerm, ...]:
        """One term for each completion; `seconds` is an equal share."""
        start = time.perf_counter()
        values, reason = self._values(group)
        seconds = (time.perf_counter() - start) / len(group.trajectories)
        return tuple(self._term(value, reason=reason, seconds=seconds) for value in values)

    def _values(self, group: TrajectoryGroup) -> tuple[Sequence[float | None], str]:
        nothing = [None] * len(group.trajectories)
        try:
            values = list(self._scorer.score(group))
        except Exception:  # noqa: BLE001  # a user's own code may raise anything; the run goes on without its verdict
            if not self._has_raised:
                _log.warning("scorer %s raised on group %d; said once", self.name, group.group_id, exc_info=True)
            self._has_raised = True
            return nothing, "raised"
        if len(values) != len(group.trajectories):
            return nothing, "wrong_number"
        return values, "not_finite"

    def _term(self, value: float | None, *, reason: str, seconds: float) -> RewardTerm:
        is_valid = isinstance(value, int | float) and math.isfinite(value)
        return RewardTerm(
            scorer=self.name,
            value=float(value) if value is not None and is_valid else 0.0,
            status="ok" if is_valid else "invalid",
            reason="scored" if is_valid else reason,
            policy_version=-1,
            seconds=seconds,
        )

    def close(self) -> None:
        """Close what the class holds, when it says how."""
        if hasattr(self._scorer, "close"):
            self._scorer.close()
