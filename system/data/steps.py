"""Where a trajectory's steps end, in sampled tokens, and where it is asked for its answer. Called by the belief scorer.

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

from system.interfaces import Task, Tokenizer
from system.records import IntArray, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectorySteps:
    """Counted in sampled tokens. S = 0 for a trajectory without any."""

    ends: IntArray  # int32[S], ascending, at least one token each; the last is num_sampled
    asked: IntArray  # int32[S+1], ascending, the first is 0; asked[t] tokens have been written when it is asked


def trajectory_steps(trajectory: Trajectory, *, task: Task, tokenizer: Tokenizer) -> TrajectorySteps:
    """The task's steps of one trajectory; a step that ends within a token ends behind it, and one without is joined."""
    num_tokens = trajectory.num_sampled
    if num_tokens == 0:
        return TrajectorySteps(ends=np.zeros(0, np.int32), asked=np.zeros(1, np.int32))
    reasoning_end = task.reasoning_end(trajectory.text)
    cuts = [cut for cut in task.cut_steps(trajectory.text) if cut < reasoning_end]
    offsets = token_offsets(
        [*cuts, reasoning_end], token_ids=trajectory.sampled_token_ids.tolist(), tokenizer=tokenizer
    )
    distinct = sorted({0, *offsets})
    inner_ends = distinct[1:-1]
    return TrajectorySteps(
        ends=np.array([*inner_ends, num_tokens], np.int32), asked=np.array([0, *inner_ends, distinct[-1]], np.int32)
    )


def positions_behind(trajectory: Trajectory, *, num_sampled: IntArray) -> IntArray:
    """For each n, how many tokens of the trajectory lead to its n-th sampled one, int32; n = 0 is the prompt.

    What the environment says behind the n-th sampled token is not among them.
    """
    behind = np.concatenate(([trajectory.num_prompt_tokens], np.flatnonzero(trajectory.is_sampled) + 1))
    return behind[num_sampled].astype(np.int32)


def token_offsets(characters: Sequence[int], *, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """For each offset in the text of `token_ids`, how many tokens it takes to write that much of it."""
    lengths = _TextLengths(token_ids, tokenizer)
    return [bisect_left(lengths, offset) for offset in characters]


class _TextLengths(Sequence[int]):
    """len(text of the first n tokens), n = 0 .. T, decoded when it is looked at: a bisection looks at few."""

    def __init__(self, token_ids: Sequence[int], tokenizer: Tokenizer) -> None:
        self._token_ids = token_ids
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._token_ids) + 1

    def __getitem__(self, number: int) -> int:  # type: ignore[override]  # bisect asks for single ones
        return len(self._tokenizer.decode(self._token_ids[:number], skip_special_tokens=True))
