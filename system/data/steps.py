"""Where a trajectory's steps end, in sampled tokens, and where it is asked for its answer. Called by scorers that ask.

    question | step 1 | step 2 | ... | step S + statement of the answer |
             ^0       ^1       ^2    ^S                                  asked: S + 1 places
                      end 1    end 2                                     end S

The statement of the final answer is no step of its own: asked behind it, a policy would only repeat it. Its tokens
belong to the last step.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from system.interfaces import Tokenizer
from system.records import IntArray, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectorySteps:
    """Counted in sampled tokens. S = 0 for a trajectory without any."""

    ends: IntArray  # int32[S], ascending, at least one token each; the last is num_sampled
    asked: IntArray  # int32[S+1], ascending, the first is 0; asked[t] tokens have been written when it is asked


def trajectory_steps(
    trajectory: Trajectory, *, cuts: Sequence[int], reasoning_end: int, tokenizer: Tokenizer
) -> TrajectorySteps:
    """Steps that end at `cuts`, in characters of the text, as far as its reasoning goes; a turn ends a step as well.

    A step that ends within a token ends behind it, and one without a token is joined with the next.
    """
    num_tokens = trajectory.num_sampled
    if num_tokens == 0:
        return TrajectorySteps(ends=np.zeros(0, np.int32), asked=np.zeros(1, np.int32))
    characters = [*(cut for cut in cuts if cut < reasoning_end), reasoning_end]
    *offsets, asked_last = token_offsets(characters, trajectory=trajectory, tokenizer=tokenizer)
    turn_ends = np.cumsum([end - start for start, end in trajectory.turns]).tolist()
    distinct = sorted({0, *offsets, *(end for end in turn_ends if end < asked_last), asked_last})
    inner_ends = distinct[1:-1]
    return TrajectorySteps(
        ends=np.array([*inner_ends, num_tokens], np.int32), asked=np.array([0, *inner_ends, distinct[-1]], np.int32)
    )


def token_steps(num_sampled: int, *, step_tokens: int) -> TrajectorySteps:
    """Chunks of `step_tokens` sampled tokens, the last one shorter; asked behind each, the last as well."""
    ends = [*range(step_tokens, num_sampled, step_tokens), *([num_sampled] if num_sampled else [])]
    return TrajectorySteps(ends=np.array(ends, np.int32), asked=np.array([0, *ends], np.int32))


def positions_behind(trajectory: Trajectory, *, num_sampled: IntArray) -> IntArray:
    """For each n, how many tokens of the trajectory lead to its n-th sampled one, int32; n = 0 is the prompt.

    What the environment says behind the n-th sampled token is not among them.
    """
    behind = np.concatenate(([trajectory.num_prompt_tokens], np.flatnonzero(trajectory.is_sampled) + 1))
    return behind[num_sampled].astype(np.int32)


def token_offsets(characters: Sequence[int], *, trajectory: Trajectory, tokenizer: Tokenizer) -> list[int]:
    """For each offset in the trajectory's text, how many sampled tokens it takes to write that much of it."""
    lengths = _WrittenLengths(trajectory, tokenizer)
    return [min(bisect_left(lengths, offset), trajectory.num_sampled) for offset in characters]


class _WrittenLengths(Sequence[int]):
    """Characters that are complete after n sampled tokens, n = 0 .. num_sampled; the line break ends a turn.

    Decoded when it is looked at: a bisection looks at few.
    """

    def __init__(self, trajectory: Trajectory, tokenizer: Tokenizer) -> None:
        self._turns = [trajectory.token_ids[start:end].tolist() for start, end in trajectory.turns]
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return sum(map(len, self._turns)) + 1

    def __getitem__(self, number: int) -> int:  # type: ignore[override]  # bisect asks for single ones
        length = 0
        for index, turn in enumerate(self._turns):
            text = self._tokenizer.decode(turn[:number], skip_special_tokens=True)
            if number < len(turn):
                # the bytes of one character may be spread over tokens: it is complete with the last of them
                return length + len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
            is_last = index == len(self._turns) - 1
            length += len(text) + (0 if is_last else 1)
            number -= len(turn)
        return length
