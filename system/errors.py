"""Errors a user can act on. Imported by every layer; imports nothing."""


class CredenceError(Exception):
    """Base of every error that ends a command with one clear message instead of a traceback."""


class ConfigError(CredenceError):
    """A configuration or input that the user can fix.

    The message names the key, what was given, what was expected and the fix.
    """

    def __init__(self, key: str, *, given: object, expected: str, fix: str) -> None:
        super().__init__(f"{key}: given {given!r}, expected {expected}. Fix: {fix}")
        self.key = key


class DeadlineError(CredenceError):
    """Somebody did not answer in time."""

    def __init__(self, who: str, *, what: str, seconds: float) -> None:
        super().__init__(f"{who} did not finish '{what}' within {seconds:g} s")
        self.who = who


class WeightSyncError(CredenceError):
    """A receiver holds other weights than the learner published; names the receiver."""


class LearnerDiedError(CredenceError):
    """A learner rank died; the run ends and can be resumed from its last checkpoint."""


class CheckpointError(CredenceError):
    """A checkpoint is missing, incomplete, or does not belong to this configuration."""
