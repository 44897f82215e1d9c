"""Rewards of one's own: short answers earn more, and one that raises now and then."""

from dataclasses import dataclass

from system.fields import key
from system.records import TrajectoryGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortAnswersOptions:
    free_tokens: int = key("Tokens that cost nothing.", 10, minimum=0)


class ShortAnswers:
    """Value: the tokens beyond those that are free, as a negative number."""

    Options = ShortAnswersOptions

    def __init__(self, options: ShortAnswersOptions) -> None:
        self._free = options.free_tokens

    def score(self, group: TrajectoryGroup) -> list[float]:
        return [-float(max(0, trajectory.num_sampled - self._free)) for trajectory in group.trajectories]


class OftenRaises:
    """What it raises costs the group its term, and the run nothing."""

    def score(self, group: TrajectoryGroup) -> list[float]:
        if group.group_id % 2:
            raise RuntimeError("no verdict on odd groups")
        return [0.0 for _ in group.trajectories]
