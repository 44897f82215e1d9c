"""A replica of the policy for forward passes over the whole vocabulary: a weight receiver like a rollout engine.

    JOINING ──receive_weights──> holds v, canary compared ──score──> adopts what its mode scores with

Plain class; `ray_actors.py` hosts it together with the scorers that share it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoTokenizer

from actors.scoring.weights import AveragedWeights, LaggedWeights, NewestWeights, ScoringWeights
from system.config.schema import ScorerConfig
from system.errors import CheckpointError, WeightSyncError
from system.numerics.answer_trees import AnswerTree, PackedTrees, split_answers
from system.numerics.logprobs import TokenStatistics, require_finite
from system.numerics.packed_attention import PackedLayout
from system.numerics.policy_model import load_policy_model, sequence_statistics
from system.records import FloatArray, ReceiverStatus, Trajectory, TrajectoryGroup, WeightGroupSpec, WeightsManifest
from system.weights.broadcast import WeightGroup, receive_tensors, torch_dtype

_STATE_FILE = "scoring_weights.safetensors"
_PREFIX = "causal_lm."  # of PolicyModel, before the HF names


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectoryStatistics:
    """float32[num_sampled] each, over the sampled tokens of one trajectory, in nats."""

    logprobs: FloatArray
    entropy: FloatArray
    self_certainty: FloatArray


class ScoringModel:
    """Holds one copy of the policy; one call at a time.

    `policy_version` is that of the weights that score: 0 for model.path as it is.
    """

    num_ranks = 1

    def __init__(
        self, *, name: str, config: ScorerConfig, model_path: str, revision: str | None, trust_remote_code: bool
    ) -> None:
        self._name = name
        self._config = config
        self._device = torch.device(config.device)
        self.tokenizer = AutoTokenizer.from_pretrained(
            model_path, revision=revision, trust_remote_code=trust_remote_code
        )
        self._model = load_policy_model(
            model_path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=torch_dtype(config.dtype),
            device=self._device,
            num_real_tokens=len(self.tokenizer) if config.mask_padded_vocab else None,
        ).requires_grad_(False)
        self._parameters = {name.removeprefix(_PREFIX): parameter for name, parameter in self._model.named_parameters()}
        self._weights = _scoring_weights(config)
        self._group: WeightGroup | None = None
        self._received: int | None = 0  # version that came in last; None while a broadcast has not been completed
        self._is_adopted = True
        self.policy_version = 0

    def join_weight_group(self, spec: WeightGroupSpec, *, first_rank: int) -> None:
        """Join as rank `first_rank`, leaving the former group. Raises DeadlineError, WeightSyncError."""
        self._leave_group()
        self._group = WeightGroup(spec, rank=first_rank)

    def receive_weights(self, manifest: WeightsManifest) -> ReceiverStatus:
        """Take part in one broadcast. Raises DeadlineError, and WeightSyncError for weights of another model.

        When it breaks off, nothing is scored before a whole broadcast has come in.
        """
        if self._group is None:
            raise WeightSyncError(f"{self._name} has not joined a weight group")
        if set(manifest.names) != set(self._parameters):
            differing = sorted(set(manifest.names) ^ set(self._parameters))
            raise WeightSyncError(f"{self._name} holds another model than is sent; they differ in {differing[:4]}")
        start = time.monotonic()
        self._received = None
        digest = receive_tensors(self._group, manifest=manifest, device=self._device, load=self._load)
        self._received = manifest.policy_version
        self._is_adopted = False
        return ReceiverStatus(
            receiver=self._name,
            policy_version=manifest.policy_version,
            digest=digest,
            seconds=time.monotonic() - start,
        )

    def canary_logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        """float32[L-1]: log p(token t | tokens before t) under the weights that came in last, temperature 1, nats."""
        statistics = sequence_statistics(self._model, token_ids, device=self._device, temperature=1.0)
        logprobs: FloatArray = statistics.logprobs.cpu().numpy()
        return logprobs

    def trajectory_statistics(self, group: TrajectoryGroup, *, temperature: float) -> list[TrajectoryStatistics]:
        """Statistics of every trajectory of `group` under the weights that score.

        The trajectories are packed end to end into passes of at most `tokens_per_pass` tokens, of this group alone:
        so the values do not depend on what else is scored at the time. Raises WeightSyncError when a broadcast broke
        off, NotFiniteError.
        """
        self._adopt()
        trajectories = group.trajectories
        statistics: list[TrajectoryStatistics] = []
        for members in _passes([len(each.token_ids) for each in trajectories], budget=self._config.tokens_per_pass):
            packed = self._forward([trajectories[index] for index in members], temperature=temperature)
            require_finite(packed, what=f"{self._name}, group {group.group_id}")
            lengths = [trajectories[index].num_sampled for index in members]
            logprobs, entropy, self_certainty = (
                np.split(values.cpu().numpy(), np.cumsum(lengths)[:-1]) for values in packed
            )
            statistics += [
                TrajectoryStatistics(logprobs=logprob, entropy=entropy_, self_certainty=certainty)
                for logprob, entropy_, certainty in zip(logprobs, entropy, self_certainty, strict=True)
            ]
        return statistics

    def answer_logprobs(self, trees: Sequence[AnswerTree], *, temperature: float) -> list[FloatArray]:
        """log pi of every answer token of every tree under the weights that score: float32[S+1, K+1, A] each, nats.

        0 behind an answer's end. The trees are packed into passes of at most `tokens_per_pass` tokens. Raises
        WeightSyncError when a broadcast broke off, NotFiniteError.
        """
        self._adopt()
        tables: list[FloatArray] = []
        for members in _passes([tree.num_tokens for tree in trees], budget=self._config.tokens_per_pass):
            together = [trees[index] for index in members]
            packed = PackedTrees.build(together, device=self._device)
            with torch.no_grad():
                statistics = TokenStatistics(
                    *self._model(
                        packed.token_ids, packed.position_ids, packed.layout, packed.predictor_index,
                        packed.target_ids, temperature,
                    )
                )  # fmt: skip
            require_finite(statistics, what=f"{self._name}, answers")
            tables += split_answers(statistics.logprobs.cpu().numpy(), trees=together)
        return tables

    def export_state(self) -> bytes:
        """What the mode has gathered (past weights, average), for another replica or a checkpoint."""
        self._adopt()
        return safetensors.torch.save(self._weights.state())

    def import_state(self, state: bytes) -> None:
        """Continue from an `export_state` of the same mode. Raises ValueError."""
        self._weights.restore(safetensors.torch.load(state))

    def save_state(self, directory: str) -> None:
        """Write `export_state` into `directory`, which is made when it is not there."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / _STATE_FILE).write_bytes(self.export_state())

    def load_state(self, directory: str) -> None:
        """Raises CheckpointError when the checkpoint has no state of this mode."""
        path = Path(directory) / _STATE_FILE
        try:
            self.import_state(path.read_bytes())
        except (FileNotFoundError, ValueError) as error:
            raise CheckpointError(f"{path} does not continue scorer.mode={self._config.mode}: {error}") from error

    def close(self) -> None:
        self._leave_group()

    def _load(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        for name, tensor in tensors:
            self._parameters[name].data.copy_(tensor)

    @torch.no_grad()
    def _adopt(self) -> None:
        if self._received is None:
            raise WeightSyncError(f"{self._name} holds a broadcast that broke off; it may not score")
        if not self._is_adopted:
            self.policy_version = self._weights.adopt(self._parameters, policy_version=self._received)
            self._is_adopted = True

    @torch.no_grad()
    def _forward(self, trajectories: Sequence[Trajectory], *, temperature: float) -> TokenStatistics:
        """Statistics of all sampled tokens of `trajectories`, end to end; float32 [M]."""
        lengths = [len(each.token_ids) for each in trajectories]
        starts = np.concatenate(([0], np.cumsum(lengths)))
        ids = torch.from_numpy(np.concatenate([each.token_ids for each in trajectories]).astype(np.int64)).to(
            self._device
        )
        positions = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).to(self._device)
        is_sampled = np.concatenate([each.is_sampled for each in trajectories])
        index = torch.from_numpy(np.flatnonzero(is_sampled)).to(self._device)
        layout = PackedLayout.build(torch.from_numpy(starts), device=self._device)
        # token t is predicted by the hidden state of token t - 1
        return TokenStatistics(*self._model(ids, positions, layout, index - 1, ids[index], temperature))

    def _leave_group(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


def _scoring_weights(config: ScorerConfig) -> ScoringWeights:
    if config.mode == "lagged":
        return LaggedWeights(lag_versions=config.lag_versions)
    if config.mode == "ema":
        return AveragedWeights(decay=config.ema_decay)
    return NewestWeights()


def _passes(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Consecutive sequences in as few passes as an in-order filling of `budget` tokens gives."""
    passes: list[list[int]] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if passes and tokens + length <= budget:
            passes[-1].append(index)
            tokens += length
        else:
            passes.append([index])
            tokens = length
    return passes
