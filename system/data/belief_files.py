"""Beliefs in the JSON line of a group: hypotheses, and for each trajectory what the policy answered after each step.

    "hypotheses": [K+1 texts], "beliefs": [{"step_ends", "outcomes", "answer_logprobs", "policy_version"}, ...]

Written by the recorder with the group, read by `credence belief`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from system.data.json_values import JsonValue
from system.records import BeliefTrace, ScoredGroup

_LOG_ZERO = -1e9  # JSON has no -inf


def beliefs_as_json(scored: ScoredGroup) -> dict[str, JsonValue]:
    """The two fields, none for a group without beliefs."""
    if scored.hypotheses is None or not scored.belief_traces:
        return {}
    return {
        "hypotheses": list(scored.hypotheses.answers),
        "beliefs": [
            {
                "step_ends": trace.step_ends.tolist(),
                "outcomes": trace.outcomes.tolist(),
                "answer_logprobs": [
                    [round(max(float(value), _LOG_ZERO), 4) for value in row] for row in trace.answer_logprobs
                ],
                "policy_version": trace.policy_version,
            }
            for trace in scored.belief_traces
        ],
    }


def read_beliefs(record: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[BeliefTrace, ...]]:
    """Hypotheses and traces of a group's JSON line. Raises KeyError where it has none."""
    traces = tuple(
        BeliefTrace(
            step_ends=np.array(entry["step_ends"], dtype=np.int32),
            outcomes=np.array(entry["outcomes"], dtype=np.int32),
            answer_logprobs=np.array(entry["answer_logprobs"], dtype=np.float32),
            policy_version=entry["policy_version"],
            trees_seconds=0.0,
            forward_seconds=0.0,
        )
        for entry in record["beliefs"]
    )
    return tuple(record["hypotheses"]), traces
