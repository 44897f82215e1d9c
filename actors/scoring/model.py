"""A replica of the policy for forward passes over the whole vocabulary: it loads snapshots like a rollout engine.

    JOINING ──load_weights──> holds v, canary compared ──score──> terms of version v

Plain class; `worker.py` hosts it together with the scorers that share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoTokenizer

from system.config.schema import ScorerConfig
from system.errors import WeightSyncError
from system.numerics.answer_trees import AnswerTree, PackedTrees, split_answers
from system.numerics.logprobs import TokenStatistics, require_finite
from system.numerics.packed_attention import PackedLayout
from system.numerics.policy_model import load_policy_model, sequence_statistics
from system.records import FloatArray, Trajectory, TrajectoryGroup
from system.weights import store
from system.weights.canary import canary_difference
from system.weights.digest import checked_buckets, torch_dtype
from system.weights.held import HeldProof, describe_held
from system.weights.manifest import ReceiverStatus, WeightsManifest

_PREFIX = "causal_lm."  # of PolicyModel, before the HF names


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrajectoryStatistics:
    """float32[num_sampled] each, over the sampled tokens of one trajectory, in nats."""

    logprobs: FloatArray
    entropy: FloatArray
    self_certainty: FloatArray


class ScoringModel:
    """Holds one copy of the policy; one call at a time.

    `policy_version` is that of the weights that score: 0 for model.path as it is. `is_average`: they are no policy's,
    but the moving average at that version.
    """

    def __init__(
        self,
        *,
        name: str,
        config: ScorerConfig,
        model_path: str,
        revision: str | None,
        trust_remote_code: bool,
        fetch: Callable[..., store.Buckets] = store.fetch,
    ) -> None:
        """`fetch(references, seconds=)` gives the buckets of a snapshot."""
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
        self._fetch = fetch
        self._proof = HeldProof()
        self._is_whole = True  # False while a load has not been completed
        self.policy_version = 0
        self.is_average = False

    def load_weights(self, manifest: WeightsManifest, timeout_seconds: float) -> ReceiverStatus:
        """Load a snapshot from the store; when that breaks off, nothing is scored before a whole one has come in.

        Raises SnapshotLostError, DeadlineError, and WeightSyncError for weights of another model or broken ones.
        """
        names = {slot.name for slot in manifest.slots}
        if names != set(self._parameters):
            differing = sorted(names ^ set(self._parameters))
            raise WeightSyncError(f"{self._name} holds another model than is sent; they differ in {differing[:4]}")
        start = time.monotonic()
        self._is_whole = False
        # copied a bucket at a time: the store's memory is read-only
        buffers = (torch.tensor(buffer) for buffer in self._fetch(manifest.references, seconds=timeout_seconds))
        for tensors in checked_buckets(buffers, manifest):
            for name, tensor in tensors:
                self._parameters[name].data.copy_(tensor)
        self._is_whole = True
        self.policy_version = manifest.policy_version
        self.is_average = manifest.canary_logprobs is None
        logprobs = self.canary_logprobs(manifest.canary_token_ids)
        if not np.isfinite(logprobs).all():
            raise WeightSyncError(f"{self._name}: the log-probabilities of the canary are NaN or infinite")
        seconds = time.monotonic() - start
        return ReceiverStatus(
            receiver=self._name,
            policy_version=manifest.policy_version,
            digest=manifest.digest,
            dtype=self._config.dtype,
            canary_max_abs_diff=None
            if manifest.canary_logprobs is None
            else canary_difference(manifest.canary_logprobs, logprobs),
            seconds=seconds,
            pause_seconds=seconds,
            proved_fraction=self._proof.proved_fraction([describe_held(self._parameters)], manifest, fused={}),
        )

    def canary_logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        """float32[L-1]: log p(token t | tokens before t) under the weights that score, temperature 1, nats."""
        statistics = sequence_statistics(self._model, token_ids, device=self._device, temperature=1.0)
        logprobs: FloatArray = statistics.logprobs.cpu().numpy()
        return logprobs

    def trajectory_statistics(self, group: TrajectoryGroup, *, temperature: float) -> list[TrajectoryStatistics]:
        """Statistics of every trajectory of `group` under the weights that score.

        The trajectories are packed end to end into passes of at most `tokens_per_pass` tokens, of this group alone:
        so the values do not depend on what else is scored at the time. Raises WeightSyncError when a load broke
        off, NotFiniteError.
        """
        self._require_whole_weights()
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
        WeightSyncError when a load broke off, NotFiniteError.
        """
        self._require_whole_weights()
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

    def _require_whole_weights(self) -> None:
        if not self._is_whole:
            raise WeightSyncError(f"{self._name} holds a load that broke off; it may not score")

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
