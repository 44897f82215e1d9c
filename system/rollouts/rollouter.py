"""Who produces trajectories: a rollouter asks an engine for tokens and says what the environment answers.

Hosted by the rollout worker, next to its engine. Token ids are the only truth: what an environment says is tokenised
once and appended; what the policy wrote is decoded for readers and never tokenised again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from system.interfaces import Tokenizer
from system.records import FinishReason, IntArray, PolicyVersions, Prompt, Sampling, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """One continuation as it left the engine. Run r of policy versions starts at version_starts[r]."""

    token_ids: Sequence[int]  # T, with EOS when it was sampled
    logprobs: Sequence[float]  # T, nats, at sampling temperature
    version_starts: Sequence[int]
    versions: Sequence[int]
    finish_reason: FinishReason


class SamplingEngine(Protocol):
    """The part of a rollout engine that rollouters use."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    async def sample(self, token_ids: list[int], *, sampling: Sampling, seed: int) -> list[SampledTokens]:
        """`sampling.num_completions` continuations of `token_ids`, number i drawn with seed `seed + i`.

        Greedy continuations are all the same: only one is returned.
        """


class Rollouter(Protocol):
    """From a problem to G trajectories. Cancelling the call aborts what the engine is doing for it."""

    async def generate(
        self, prompt: Prompt, *, group_id: int, sampling: Sampling, engine: SamplingEngine
    ) -> tuple[Trajectory, ...]:
        """`sampling.num_completions` trajectories that depend on (weights, prompt, sampling, group_id) only."""


def group_seed(seed: int, *, group_id: int) -> int:
    """Seed of trajectory 0 of a group, in [0, 2^62); trajectory i uses this + i.

    A hash of (seed, group_id), so that draws depend neither on the number of workers nor on the
    order in which groups are served.
    """
    digest = hashlib.blake2b(f"{seed}/{group_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


class TrajectoryBuilder:
    """A trajectory while it grows: tokens of the environment and of the policy in turns, the environment first."""

    def __init__(self, prompt_token_ids: IntArray) -> None:
        self._token_ids = [prompt_token_ids]
        self._is_sampled = [np.zeros(len(prompt_token_ids), np.bool_)]
        self._logprobs = [np.zeros(len(prompt_token_ids), np.float32)]
        self._version_starts, self._versions = [0], [-1]
        self._num_tokens = len(prompt_token_ids)
        self._turns: list[list[int]] = []
        self._finish_reason: FinishReason = "stop"

    @property
    def token_ids(self) -> list[int]:
        """All tokens so far: what the policy reads next."""
        return [int(token) for part in self._token_ids for token in part]

    def append_sampled(self, sampled: SampledTokens) -> None:
        """What the policy wrote."""
        self._version_starts += [self._num_tokens + start for start in sampled.version_starts]
        self._versions += sampled.versions
        self._append(sampled.token_ids, logprobs=np.asarray(sampled.logprobs, np.float32), is_sampled=True)
        self._turns.append(list(sampled.token_ids))
        self._finish_reason = sampled.finish_reason

    def append_environment(self, token_ids: Sequence[int]) -> None:
        """What the environment answered."""
        self._version_starts.append(self._num_tokens)
        self._versions.append(-1)
        self._append(token_ids, logprobs=np.zeros(len(token_ids), np.float32), is_sampled=False)

    def build(self, *, index: int, tokenizer: Tokenizer) -> Trajectory:
        """The trajectory; its text is what the policy wrote, each turn on lines of its own."""
        return Trajectory(
            index=index,
            token_ids=np.concatenate(self._token_ids),
            is_sampled=np.concatenate(self._is_sampled),
            logprobs=np.concatenate(self._logprobs),
            policy_versions=PolicyVersions(
                starts=np.array(self._version_starts, np.int32), versions=np.array(self._versions, np.int32)
            ),
            text="\n".join(tokenizer.decode(turn, skip_special_tokens=True) for turn in self._turns),
            finish_reason=self._finish_reason,
        )

    def _append(self, token_ids: Sequence[int], *, logprobs: np.ndarray, is_sampled: bool) -> None:
        self._token_ids.append(np.asarray(token_ids, np.int32))
        self._logprobs.append(logprobs)
        self._is_sampled.append(np.full(len(token_ids), is_sampled))
        self._num_tokens += len(token_ids)
