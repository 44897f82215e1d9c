"""What the controller connects, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass

from system.algorithms.base import Algorithm
from system.data.prompts import PromptSource
from system.runtime.checkpoint import CheckpointStore
from system.runtime.evaluator import EvaluationResult, Evaluator
from system.runtime.flight_recorder import FlightRecorder
from system.runtime.group_buffer import GroupBuffer
from system.runtime.group_scoring import GroupScoring
from system.runtime.learner_group import LearnerGroup
from system.runtime.learner_restarts import LearnerRestarts
from system.runtime.pools import Pools
from system.runtime.preemption import Preemption
from system.runtime.weight_sync import WeightSync


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the controller connects."""

    algorithm: Algorithm
    learner_group: LearnerGroup
    pools: Pools
    scoring: GroupScoring
    weight_sync: WeightSync
    buffer: GroupBuffer
    prompt_source: PromptSource
    evaluator: Evaluator
    checkpoints: CheckpointStore
    preemption: Preemption
    restarts: LearnerRestarts
    flight_recorder: FlightRecorder


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How the run stands; the summary is made of it."""

    policy_version: int
    completion_tokens: int  # trained on since the start
    canary_max_abs_diff: float
    before: EvaluationResult | None = None
    after: EvaluationResult | None = None
    stopped_by: str = "num_updates"
    phase: str = "start"
    bottleneck: str | None = None  # what the newest update waited for
