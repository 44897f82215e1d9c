"""Errors a user can act on. Imported by every layer; imports nothing.

Those with keyword arguments say how to rebuild themselves, because they cross process borders by pickle.
"""

import difflib
from collections.abc import Callable, Iterable
from functools import partial


class CredenceError(Exception):
    """Base of every error that ends a command with one clear message instead of a traceback."""


class ConfigError(CredenceError):
    """A configuration or input that the user can fix.

    The message names the key, what was given, what was expected and the fix.
    """

    def __init__(self, key: str, *, given: object, expected: str, fix: str) -> None:
        super().__init__(f"{key}: given {given!r}, expected {expected}. Fix: {fix}")
        self.key, self.fix = key, fix
        self._with_fix = partial(ConfigError, key, given=given, expected=expected)
        self._rebuild = partial(self._with_fix, fix=fix)

    def with_fix(self, fix: str) -> "ConfigError":
        """The same error with another fix."""
        return self._with_fix(fix=fix)

    @classmethod
    def unknown(cls, key: str, *, given: str, known: Iterable[str], others: str | None = None) -> "ConfigError":
        """For a name that nothing has; suggests the nearest one."""
        names = list(known)
        near = difflib.get_close_matches(given, names, n=1)
        return cls(
            key,
            given=given,
            expected=f"one of {', '.join(names)}" + (f", or {others}" if others else ""),
            fix=f"did you mean {near[0]}?" if near else "choose one of these.",
        )

    def __reduce__(self) -> tuple[Callable[[], "ConfigError"], tuple[()]]:
        return self._rebuild, ()


class DeadlineError(CredenceError):
    """Somebody did not answer in time."""

    def __init__(self, who: str, *, what: str, seconds: float) -> None:
        super().__init__(f"{who} did not finish '{what}' within {seconds:g} s")
        self.who = who
        self._rebuild = partial(DeadlineError, who, what=what, seconds=seconds)

    def __reduce__(self) -> tuple[Callable[[], "DeadlineError"], tuple[()]]:
        return self._rebuild, ()


class WeightSyncError(CredenceError):
    """A receiver holds other weights than the learner published; names the receiver."""


class SnapshotLostError(CredenceError):
    """A published version of the weights died with the learner that held it; no fault of the receiver."""


class EngineFailedError(CredenceError):
    """The engine of a rollout worker is dead for good; replace the worker."""


class LearnerDiedError(CredenceError):
    """A learner rank died or does not answer; the run goes back to its last checkpoint with a new learner group."""


class ClusterLostError(CredenceError):
    """Ray's control service or this node's raylet is gone; the run can be resumed on a new cluster."""


class NotFiniteError(CredenceError, FloatingPointError):
    """Log-probabilities of the policy are NaN or infinite: its weights are broken."""


class GradientError(CredenceError):
    """Gradients are NaN or infinite step after step: nothing is learned any more."""


class StalledError(CredenceError):
    """A stage of the run stood still for too long; the run ends and can be resumed from its last checkpoint."""


class CheckpointError(CredenceError):
    """A checkpoint is missing, incomplete, or does not belong to this configuration."""


class RecordError(CredenceError):
    """A step of the flight recorder is missing, damaged, or of another version of credence."""


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error inside nested groups: one message instead of a tree of tracebacks."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
