"""What BARL asks of a group: hypotheses found beside the verifier, and a trace of the policy's answers by step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from system.records import FloatArray, IntArray, ScoredGroup

_LOG_ZERO = -1e9  # JSON has no -inf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerHypotheses:
    """What a group's trajectories may be heading for: the reference answer and the group's own distinct answers."""

    answers: tuple[str, ...]  # K+1; 0 = reference answer
    stated: IntArray  # int32[G], the hypothesis that a trajectory's final answer equals; -1: none of them
    seconds: float  # that finding them took


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BeliefTrace:
    """What the policy would have answered after each step of one trajectory, had it been asked."""

    hypotheses: AnswerHypotheses  # of the group
    stated: int  # the hypothesis that the final answer equals; -1: none of them
    step_ends: IntArray  # int32[S], in sampled tokens; the last is num_sampled
    answer_logprobs: FloatArray  # float32[S+1, K+1], log P[t, i], nats
    policy_version: int
    trees_seconds: float  # an equal share of what cutting steps and building trees took for the group
    forward_seconds: float  # and of the forward passes

    def as_json(self) -> Mapping[str, object]:
        """Plain values for the JSON line of a group."""
        return {
            "hypotheses": list(self.hypotheses.answers),
            "stated": self.stated,
            "step_ends": self.step_ends.tolist(),
            "answer_logprobs": [
                [round(max(float(value), _LOG_ZERO), 4) for value in row] for row in self.answer_logprobs
            ],
            "policy_version": self.policy_version,
        }


def read_trace(record: Mapping[str, Any]) -> BeliefTrace:
    """What `as_json` wrote. Raises KeyError where it is something else."""
    stated = int(record["stated"])
    return BeliefTrace(
        hypotheses=AnswerHypotheses(
            answers=tuple(record["hypotheses"]), stated=np.array([stated], dtype=np.int32), seconds=0.0
        ),
        stated=stated,
        step_ends=np.array(record["step_ends"], dtype=np.int32),
        answer_logprobs=np.array(record["answer_logprobs"], dtype=np.float32),
        policy_version=int(record["policy_version"]),
        trees_seconds=0.0,
        forward_seconds=0.0,
    )


def traces_of(group: ScoredGroup) -> tuple[BeliefTrace, ...]:
    """The G traces of a group that was asked. Raises ValueError for any other."""
    traces = tuple(each for each in group.evidence or () if isinstance(each, BeliefTrace))
    if len(traces) != len(group.group.trajectories):
        raise ValueError(f"group {group.group_id} has {len(traces)} traces for {len(group.group.trajectories)}")
    return traces
