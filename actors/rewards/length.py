"""The length of a completion in tokens, as a reward term: `correct - 0.001 * length` is a weight of -0.001."""

from system.records import TrajectoryGroup


class Length:
    """Value: the number of tokens that the policy wrote."""

    def score(self, group: TrajectoryGroup) -> list[float]:
        return [float(trajectory.num_sampled) for trajectory in group.trajectories]
