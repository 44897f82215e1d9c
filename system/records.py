"""The data dictionary: one frozen record type per stage of a step; nothing is filled in later.

Arrays are numpy, so that records cross process borders without torch. Records compare by
identity (`eq=False`): a generated `__eq__` would raise on arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

FinishReason = Literal["stop", "length"]
RewardStatus = Literal["ok", "invalid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One row of a task. `solution` is a worked reference (empty when the data has none)."""

    problem_id: str
    question: str
    solution: str
    reference_answer: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    prompt_id: str
    token_ids: IntArray  # int32[P]
    text: str  # for reading; token_ids are what is trained on
    reference_answer: str
    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn. `temperature` 0 is greedy; seeds follow from (seed, group_id, index)."""

    temperature: float
    top_p: float
    top_k: int  # 0 = off
    max_tokens: int
    num_completions: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyVersions:
    """Run-length policy version of each token: run r covers starts[r] .. starts[r+1]-1."""

    starts: IntArray  # int32[R], starts[0] == 0
    versions: IntArray  # int32[R], -1 where nothing was sampled or nobody knows

    def of_tokens(self, num_tokens: int) -> IntArray:
        """int32[L]: the version of each of `num_tokens` tokens."""
        return np.repeat(self.versions, np.diff(self.starts, append=num_tokens))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """One attempt at a problem: L tokens, some sampled by the policy, the others put there by the environment.

    The prompt is what stands before the first sampled token. Only sampled tokens are trained on, scored and counted.
    Raises ValueError for arrays of unequal length, or a first token that is sampled: nothing predicts it.
    """

    index: int  # 0 .. G-1 in its group
    token_ids: IntArray  # int32[L], with EOS where it was sampled
    is_sampled: BoolArray  # bool[L]
    logprobs: FloatArray  # float32[L], nats, at sampling temperature; 0 where not sampled
    policy_versions: PolicyVersions  # of the L tokens; that of a token which was not sampled says nothing
    text: str  # what the policy wrote, turns on lines of their own; for verifiers and readers, never tokenised again
    finish_reason: FinishReason  # of the last turn

    def __post_init__(self) -> None:
        shape = (len(self.token_ids),)
        if self.is_sampled.shape != shape or self.logprobs.shape != shape:
            raise ValueError(
                f"is_sampled and logprobs must have the shape of token_ids {shape}, "
                f"got {self.is_sampled.shape} and {self.logprobs.shape}"
            )
        if self.is_sampled[:1].any():
            raise ValueError("the first token of a trajectory cannot be sampled: nothing predicts it")

    @property
    def num_sampled(self) -> int:
        return int(np.count_nonzero(self.is_sampled))

    @property
    def turns(self) -> list[tuple[int, int]]:
        """[start, end) of each stretch of sampled tokens."""
        edges = np.flatnonzero(np.diff(self.is_sampled, prepend=False, append=False))
        return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]

    @property
    def num_turns(self) -> int:
        return len(self.turns)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens before the first sampled one; L when none was sampled."""
        return int(self.is_sampled.argmax()) if self.is_sampled.any() else len(self.token_ids)

    @property
    def sampled_token_ids(self) -> IntArray:
        """int32[num_sampled]"""
        return self.token_ids[self.is_sampled]

    @property
    def sampled_policy_versions(self) -> IntArray:
        """int32[num_sampled]"""
        return self.policy_versions.of_tokens(len(self.token_ids))[self.is_sampled]

    @property
    def min_policy_version(self) -> int:
        """The oldest policy version that sampled a token; -1 when none was sampled."""
        starts, versions = self.policy_versions.starts.tolist(), self.policy_versions.versions.tolist()
        runs = zip(starts, [*starts[1:], len(self.token_ids)], versions, strict=False)
        return min((version for start, end, version in runs if self.is_sampled[start:end].any()), default=-1)

    def at_sampled(self, values: FloatArray) -> FloatArray:
        """float32[L]: `values` float[num_sampled] at the sampled tokens, 0 elsewhere."""
        spread = np.zeros(len(self.token_ids), dtype=np.float32)
        spread[self.is_sampled] = values
        return spread


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectoryGroup:
    group_id: int
    prompt: Prompt
    trajectories: tuple[Trajectory, ...]  # G, ordered by index

    @property
    def min_policy_version(self) -> int:
        """The oldest policy version that sampled a token of the group; -1 when none was sampled."""
        return min((each.min_policy_version for each in self.trajectories if each.num_sampled), default=-1)

    def __reduce__(self) -> tuple[Callable[..., "TrajectoryGroup"], tuple[object, ...]]:
        """A group crosses process borders several times, and a few long arrays do so in a fraction of the time."""
        return _unpack_group, (self.group_id, self.prompt, _pack_trajectories(self.trajectories))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PackedTrajectories:
    """G trajectories end to end: L tokens and R runs of versions in all."""

    lengths: list[int]  # G
    num_runs: list[int]  # G
    token_ids: IntArray  # int32[L]
    is_sampled: BoolArray  # bool[L]
    logprobs: FloatArray  # float32[L]
    starts: IntArray  # int32[R]
    versions: IntArray  # int32[R]
    indices: list[int]  # G
    texts: list[str]  # G
    finish_reasons: list[FinishReason]  # G


def _pack_trajectories(trajectories: tuple[Trajectory, ...]) -> _PackedTrajectories | None:
    """None for an empty group."""
    if not trajectories:
        return None
    return _PackedTrajectories(
        lengths=[len(each.token_ids) for each in trajectories],
        num_runs=[len(each.policy_versions.starts) for each in trajectories],
        token_ids=np.concatenate([each.token_ids for each in trajectories]),
        is_sampled=np.concatenate([each.is_sampled for each in trajectories]),
        logprobs=np.concatenate([each.logprobs for each in trajectories]),
        starts=np.concatenate([each.policy_versions.starts for each in trajectories]),
        versions=np.concatenate([each.policy_versions.versions for each in trajectories]),
        indices=[each.index for each in trajectories],
        texts=[each.text for each in trajectories],
        finish_reasons=[each.finish_reason for each in trajectories],
    )


def _unpack_group(group_id: int, prompt: Prompt, packed: _PackedTrajectories | None) -> TrajectoryGroup:
    trajectories: list[Trajectory] = []
    if packed is not None:
        token_ends, run_ends = list(accumulate(packed.lengths)), list(accumulate(packed.num_runs))
        for number, (token_end, run_end) in enumerate(zip(token_ends, run_ends, strict=True)):
            tokens = slice(token_end - packed.lengths[number], token_end)
            runs = slice(run_end - packed.num_runs[number], run_end)
            trajectories.append(
                Trajectory(
                    index=packed.indices[number],
                    token_ids=packed.token_ids[tokens],
                    is_sampled=packed.is_sampled[tokens],
                    logprobs=packed.logprobs[tokens],
                    policy_versions=PolicyVersions(starts=packed.starts[runs], versions=packed.versions[runs]),
                    text=packed.texts[number],
                    finish_reason=packed.finish_reasons[number],
                )
            )
    return TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=tuple(trajectories))


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardTerm:
    """One scorer's verdict on one trajectory. An invalid term is no zero: it is left out and counted."""

    scorer: str
    value: float  # meaningless when status is "invalid"
    status: RewardStatus
    reason: str  # why it is invalid, or how it was decided; a short fixed code, e.g. "timeout"
    policy_version: int  # -1 for scorers without weights
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerContinuation:
    """How a task states an answer: `prefix` asks for it, `text` is it, as it would go on behind the reasoning."""

    prefix: str  # e.g. "#"; not counted in the answer's probability
    text: str
    ends_response: bool  # whether the end token belongs to the answer, so that "7" is not the beginning of "72"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupScores:
    """What the scorers of one worker say of a group; the group itself is not sent back."""

    terms: tuple[tuple[RewardTerm, ...], ...]  # G x scorers of that worker
    evidence: tuple[Any, ...] | None  # G, opaque to everybody but the algorithm that asked for it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredGroup:
    group: TrajectoryGroup
    terms: tuple[tuple[RewardTerm, ...], ...]  # G x number of scorers
    evidence: tuple[Any, ...] | None = None  # G where the algorithm asks for some; others read its `as_json` at most

    @property
    def group_id(self) -> int:
        return self.group.group_id


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSample:
    """One trajectory as it is trained on. Index t speaks of token t: its log-probability is predicted at t-1."""

    group_id: int
    token_ids: IntArray  # int32[L]
    loss_mask: BoolArray  # bool[L], true on the sampled tokens that are trained on
    rollout_logprobs: FloatArray  # float32[L], 0 where not sampled
    advantages: FloatArray  # float32[L], 0 where not sampled
    min_policy_version: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedMicroBatch:
    """B sequences end to end, no padding: sequence b is sequence_starts[b] .. sequence_starts[b+1]-1."""

    token_ids: IntArray  # int32[N]
    position_ids: IntArray  # int32[N], from 0 in each sequence
    sequence_starts: IntArray  # int32[B+1]
    loss_mask: BoolArray  # bool[N]
    rollout_logprobs: FloatArray  # float32[N]
    advantages: FloatArray  # float32[N]
    min_policy_versions: IntArray  # int32[B], oldest policy version that wrote a token of the sequence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptimizerStep:
    """One rank's part of an optimizer step; the denominators are those of the whole step over all ranks."""

    micro_batches: tuple[PackedMicroBatch, ...]  # as many on every rank
    num_loss_tokens: int
    num_sequences: int  # those with at least one loss token


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingBatch:
    """What is trained on between two policy versions, in one or several optimizer steps."""

    steps_by_rank: tuple[tuple[OptimizerStep, ...], ...]  # [ranks][steps]
    num_loss_tokens: int  # over all ranks and steps
    num_sequences: int  # over all ranks and steps, those with at least one loss token


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """`name` is `area/name_unit`."""

    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    policy_version: int  # after the batch; one more than before where the weights changed
    has_new_weights: bool  # False: every gradient was NaN or infinite, so that no optimizer step was taken
    metrics: tuple[Metric, ...]
