"""The loss of packed micro-batches under a model: advantages arrive ready, and the loss is one object.

Called by the learner in each step, and by `credence replay`, which computes a recorded step again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.step_statistics import StepStatistics
from system.config.losses import make_loss
from system.config.schema import LossConfig
from system.losses.base import Loss, LossInputs
from system.losses.kl import k3_kl
from system.numerics.logprobs import TokenStatistics, require_finite
from system.numerics.masking import loss_token_weights, sequence_index, weighted_sum
from system.numerics.packed_attention import PackedLayout
from system.records import PackedMicroBatch


class PackedLoss:
    """Per-token loss, KL to the reference and entropy bonus, with the global denominator of a step.

    `model` and `reference` are PolicyModels, or what wraps them; `temperature` is the one at which the rollout
    log-probabilities were recorded; `name` says in errors whose weights they are.
    """

    def __init__(
        self,
        config: LossConfig,
        *,
        model: torch.nn.Module,
        reference: torch.nn.Module | None,
        temperature: float,
        device: torch.device,
        name: str,
    ) -> None:
        self._config = config
        self._loss: Loss = make_loss(config)
        self._model = model
        self._reference = reference
        self._temperature = temperature
        self._device = device
        self._name = name

    def share_of(
        self,
        micro_batch: PackedMicroBatch,
        *,
        denominators: tuple[int, int],
        policy_version: int,
        statistics: StepStatistics,
    ) -> Tensor:
        """This micro-batch's share of the step's loss: sum_t w_t (loss_t + kl_t - entropy bonus_t).

        `denominators`: loss tokens and sequences of the step; `policy_version` is that of the model. Raises
        NotFiniteError.
        """
        inputs = PackedInputs(micro_batch, device=self._device)
        current = inputs.forward(self._model, temperature=self._temperature)
        require_finite(current, what=f"{self._name}, policy version {policy_version}")
        outputs = self._loss(
            LossInputs(
                logprobs=current.logprobs,
                rollout_logprobs=inputs.rollout_logprobs,
                advantages=inputs.advantages,
                sequence_index=inputs.sequence_index,
                num_sequences=len(inputs.sequence_starts) - 1,
            )
        )
        token_loss = outputs.loss
        reference_kl = None
        if self._reference is not None:
            with torch.no_grad():
                reference = inputs.forward(self._reference, temperature=self._temperature)
            reference_kl = k3_kl(current.logprobs, reference_logprobs=reference.logprobs)
            token_loss = token_loss + self._config.kl_coefficient * reference_kl
        if self._config.entropy_coefficient != 0:
            token_loss = token_loss - self._config.entropy_coefficient * current.entropy
        weights = loss_token_weights(
            inputs.loss_mask,
            sequence_starts=inputs.sequence_starts,
            denominator=self._config.denominator,
            num_loss_tokens=denominators[0],
            num_sequences=denominators[1],
            constant_length=self._config.constant_length,
        )
        loss = weighted_sum(token_loss, weights=weights[inputs.loss_index])
        statistics.add(
            outputs,
            loss=loss,
            num_tokens=len(micro_batch.token_ids),
            logprobs=current.logprobs,
            rollout_logprobs=inputs.rollout_logprobs,
            entropy=current.entropy,
            self_certainty=current.self_certainty,
            reference_kl=reference_kl,
            staleness=policy_version - inputs.min_policy_versions,
        )
        return loss


class PackedInputs:
    """A micro-batch on the device; attributes without a note are over its M loss tokens."""

    def __init__(self, micro_batch: PackedMicroBatch, *, device: torch.device) -> None:
        # Copies: arrays that come through Ray's object store are read-only, which torch warns about.
        starts = torch.tensor(micro_batch.sequence_starts)
        self.token_ids = torch.tensor(micro_batch.token_ids).long().to(device)  # [N]
        self.position_ids = torch.tensor(micro_batch.position_ids).long().to(device)  # [N]
        self.sequence_starts = starts.to(device)  # [B+1]
        self.loss_mask = torch.tensor(micro_batch.loss_mask).to(device)  # [N]
        self.layout = PackedLayout.build(starts, device=device)
        self.loss_index = self.loss_mask.nonzero()[:, 0]  # packed positions
        self.rollout_logprobs = torch.tensor(micro_batch.rollout_logprobs).to(device)[self.loss_index]
        self.advantages = torch.tensor(micro_batch.advantages).to(device)[self.loss_index]
        self.sequence_index = sequence_index(self.sequence_starts)[self.loss_index]
        self.min_policy_versions = torch.tensor(micro_batch.min_policy_versions).to(device)[self.sequence_index]

    def forward(self, model: torch.nn.Module, *, temperature: float) -> TokenStatistics:
        # Token t is predicted by the hidden state of token t - 1.
        return TokenStatistics(
            *model(
                self.token_ids,
                self.position_ids,
                self.layout,
                self.loss_index - 1,
                self.token_ids[self.loss_index],
                temperature,
            )
        )
