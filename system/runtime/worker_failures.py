"""What counts as the death of a worker, and the errors that tell of it. Used by the pools and the weight sync."""

from collections.abc import Sequence

from ray.exceptions import RayError, RayTaskError

from system.errors import CredenceError, DeadlineError, EngineFailedError

# What to catch; `is_worker_failure` then says whether the worker is lost.
WORKER_FAILURES = (RayError, EngineFailedError, DeadlineError)


def is_worker_failure(error: BaseException) -> bool:
    """Whether the worker is of no more use: its process, node or engine is gone, or it does not answer.

    False: it lives, and what it was asked to do raised.
    """
    if isinstance(error, EngineFailedError | DeadlineError):
        return True
    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


class WorkerDiedError(CredenceError):
    """A worker is gone."""


class PoolExhaustedError(CredenceError):
    """More workers were lost than the configuration allows."""


class PoisonedCallError(CredenceError):
    """A call that lost its worker at every attempt; `errors` says how, one line an attempt."""

    def __init__(self, what: str, *, errors: Sequence[str]) -> None:
        super().__init__(f"'{what}' lost its worker {len(errors)} times. The last: {errors[-1]}")
        self.errors = tuple(errors)
