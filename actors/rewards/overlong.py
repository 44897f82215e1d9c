"""DAPO's soft overlong punishment: a completion that comes near the length limit loses up to 1.

Source: Yu et al., DAPO, arXiv 2503.14476, equation 13.
"""

from dataclasses import dataclass

from system.errors import ConfigError
from system.fields import key
from system.records import TrajectoryGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlongOptions:
    max_tokens: int = key("L_max: tokens from which on the punishment is whole.", minimum=1)
    buffer_tokens: int = key("L_cache: tokens below max_tokens from which on it begins.", minimum=1)


class Overlong:
    """0 up to L_max - L_cache tokens, then falling to -1 at L_max:

    R(y) = ((L_max - L_cache) - |y|) / L_cache,   limited to -1 .. 0
    """

    Options = OverlongOptions

    def __init__(self, options: OverlongOptions) -> None:
        """Raises ConfigError when the buffer is longer than the limit."""
        if options.buffer_tokens > options.max_tokens:
            raise ConfigError(
                "buffer_tokens of the scorer overlong",
                given=options.buffer_tokens,
                expected=f"at most max_tokens={options.max_tokens}",
                fix="lower it",
            )
        self._begin = options.max_tokens - options.buffer_tokens
        self._buffer = options.buffer_tokens

    def score(self, group: TrajectoryGroup) -> list[float]:
        lengths = [trajectory.num_sampled for trajectory in group.trajectories]
        return [max(-1.0, min(0.0, (self._begin - length) / self._buffer)) for length in lengths]
