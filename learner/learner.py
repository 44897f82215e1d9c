"""One learner rank: takes packed micro-batches, makes the optimizer steps of a batch, hands out weights.

Plain class; worker.py adds what publishes its weights. It knows no algorithm: advantages arrive ready, and the loss is
one object.

| call                                                        | who calls it                        |
|-------------------------------------------------------------|-------------------------------------|
| start, train_step, gather_full_weights, canary_logprobs,    | all ranks, in the same order        |
| load_checkpoint, shutdown                                   | (each may end in a collective)      |
| capture_checkpoint                                          | all ranks                           |
| policy_version                                              | any rank                            |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from learner.checkpoint import LearnerState, capture_checkpoint, load_checkpoint
from learner.deepspeed_engine import DeepSpeedEngine, join_process_group
from learner.export import description_folder
from learner.packed_loss import PackedLoss
from learner.schedule import learning_rate_at
from learner.step_statistics import StepClock, StepStatistics, step_metrics
from system.config.schema import LearnerConfig, LossConfig
from system.errors import GradientError
from system.numerics.policy_model import PolicyModel, load_policy_model, persistent_buffers, sequence_statistics
from system.records import FloatArray, OptimizerStep, StepResult
from system.stack_signal import catch_stack_signal

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Learner:
    """`temperature` is the sampling temperature at which the rollout log-probabilities were recorded."""

    def __init__(
        self,
        *,
        rank: int,
        num_ranks: int,
        config: LearnerConfig,
        loss: LossConfig,
        model_path: str,
        revision: str | None,
        trust_remote_code: bool,
        num_updates: int,
        optimizer_steps: int,
        temperature: float,
    ) -> None:
        self._rank = rank
        self._num_ranks = num_ranks
        self._config = config
        self._loss_config = loss
        self._model_path = model_path
        self._revision = revision
        self._trust_remote_code = trust_remote_code
        self._num_updates = num_updates
        self._optimizer_steps = optimizer_steps
        self._temperature = temperature
        self._policy_version = 0
        self._num_skipped_in_a_row = 0
        self._num_skipped_since_version = 0
        self._accumulated: _Accumulated | None = None  # of the batch that is arriving in portions

    @property
    def policy_version(self) -> int:
        """Batches that changed the weights since the initial ones."""
        return self._policy_version

    def start(self, *, host: str, port: int) -> None:
        """Meets the other ranks at `host:port`, loads the model and builds the engine."""
        catch_stack_signal()
        torch.set_num_threads(self._config.threads_per_rank)
        join_process_group(config=self._config, rank=self._rank, num_ranks=self._num_ranks, host=host, port=port)
        policy = self._load_model(gradient_checkpointing=self._config.gradient_checkpointing)
        self._buffers = persistent_buffers(policy)
        if self._rank == 0:  # now, and not at a checkpoint hours later
            self._description_folder = description_folder(self._model_path, revision=self._revision)
        self._reference: PolicyModel | None = None
        if self._loss_config.kl_coefficient > 0:
            self._reference = self._load_model(gradient_checkpointing=False).requires_grad_(False)
        self._engine = DeepSpeedEngine(policy, config=self._config, rank=self._rank, num_ranks=self._num_ranks)
        self._packed_loss = PackedLoss(
            self._loss_config,
            model=self._engine.module,
            reference=self._reference,
            temperature=self._temperature,
            device=self._engine.device,
            name=f"learner rank {self._rank}",
        )

    def _load_model(self, *, gradient_checkpointing: bool) -> PolicyModel:
        return load_policy_model(
            self._model_path,
            revision=self._revision,
            trust_remote_code=self._trust_remote_code,
            dtype=_DTYPES[self._config.dtype],
            device=torch.device(self._config.device),
            gradient_checkpointing=gradient_checkpointing,
        )

    def train_step(self, steps: Sequence[OptimizerStep]) -> StepResult:
        """This rank's part of the optimizer steps of one batch, then one policy version more.

        An optimizer step whose gradient is NaN or infinite is skipped, on all ranks alike; when all of them are,
        the version stays. Metrics are global and equal on all ranks. Raises GradientError after
        learner.max_skipped_steps skipped steps in a row.
        """
        before, self._accumulated = self._accumulated, None
        batch = before or _Accumulated(self._engine)
        divisor = 1.0 if before is None else self._divisor(steps)
        norms = []
        for number, step in enumerate(steps):
            self._add_gradients(step, to=batch, is_whole=before is None, is_last=True)
            learning_rate = self._learning_rate(number)
            with batch.clock.phase("optimizer"):
                norms.append(self._engine.step(learning_rate=learning_rate, divisor=divisor))
            self._count_skipped(norms[-1])
        self._num_skipped_since_version += norms.count(None)
        has_new_weights = any(norm is not None for norm in norms)
        self._policy_version += has_new_weights
        metrics = step_metrics(
            self._engine.gather_rows(batch.statistics.row(seconds=batch.clock.seconds())),
            loss_divisor=divisor * len(norms),
            learning_rate=learning_rate,
            gradient_norms=norms,
            num_skipped=self._num_skipped_since_version,
            num_sequences=sum(step.num_sequences for step in steps),
            num_microbatches=batch.num_microbatches,
            has_reference=self._reference is not None,
        )
        if has_new_weights:
            self._num_skipped_since_version = 0
        return StepResult(policy_version=self._policy_version, has_new_weights=has_new_weights, metrics=metrics)

    def accumulate(self, step: OptimizerStep) -> None:
        """This rank's part of the gradient of one portion of a batch; `train_step` gets the last portion.

        The denominators of a batch that is still arriving are not known: `train_step` divides by them at the end.
        """
        if self._accumulated is None:
            self._accumulated = _Accumulated(self._engine)
        self._add_gradients(step, to=self._accumulated, is_whole=False, is_last=False)

    def _add_gradients(self, step: OptimizerStep, *, to: _Accumulated, is_whole: bool, is_last: bool) -> None:
        """Forward and backward; `is_whole`: the step's denominators are known, `is_last`: it is complete."""
        denominators = (step.num_loss_tokens, step.num_sequences) if is_whole else (1, 1)
        for position, micro_batch in enumerate(step.micro_batches, start=1):
            with to.clock.phase("forward"):
                loss = self._packed_loss.share_of(
                    micro_batch,
                    denominators=denominators,
                    policy_version=self._policy_version,
                    statistics=to.statistics,
                )
            with to.clock.phase("backward"):
                self._engine.backward(loss, is_last=is_last and position == len(step.micro_batches))
        to.num_microbatches += len(step.micro_batches)

    def _divisor(self, steps: Sequence[OptimizerStep]) -> float:
        """What the gradient of a batch that came in portions is divided by; the last portion has the whole's counts."""
        (last,) = steps
        return float(last.num_loss_tokens if self._loss_config.denominator == "token_mean" else last.num_sequences)

    def _learning_rate(self, number: int) -> float:
        """Of optimizer step `number` of the batch."""
        return learning_rate_at(
            self._policy_version * self._optimizer_steps + number,
            num_steps=self._num_updates * self._optimizer_steps,
            peak=self._config.learning_rate,
            warmup_ratio=self._config.warmup_ratio,
            final_ratio=self._config.final_lr_ratio,
        )

    def _count_skipped(self, gradient_norm: float | None) -> None:
        self._num_skipped_in_a_row = 0 if gradient_norm is not None else self._num_skipped_in_a_row + 1
        if self._num_skipped_in_a_row > self._config.max_skipped_steps:
            raise GradientError(
                f"the gradient was NaN or infinite in {self._num_skipped_in_a_row} optimizer steps in a row, at policy "
                f"version {self._policy_version}; the weights are those of the last good step. Fix: look at the loss, "
                "the advantages and learner.learning_rate, or raise learner.max_skipped_steps"
            )

    def gather_full_weights(self) -> dict[str, Tensor]:
        """Full parameters under their HF names on rank 0, an empty dict elsewhere; see DeepSpeedEngine."""
        return self._engine.gather_full_weights()

    def canary_logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        """Log-probabilities of tokens 1 .. L-1 at temperature 1, float32[L-1], nats.

        ZeRO-3 needs all ranks; they return the same.
        """
        statistics = sequence_statistics(self._engine.module, token_ids, device=self._engine.device, temperature=1.0)
        logprobs: FloatArray = statistics.logprobs.cpu().numpy()
        return logprobs

    def capture_checkpoint(self, directory: str) -> Callable[[], Sequence[Path]]:
        """Copies this rank's state into host memory; what is returned writes it, at any time before the next copy."""
        return capture_checkpoint(directory, engine=self._engine, state=self._state(), rank=self._rank)

    def load_checkpoint(self, directory: str, *, policy_version: int) -> None:
        """Continues where the copy was taken. Raises CheckpointError when it does not fit."""
        expected = replace(self._state(), policy_version=policy_version)
        saved = load_checkpoint(directory, engine=self._engine, expected=expected)
        self._policy_version = policy_version
        self._num_skipped_in_a_row = saved.num_skipped_in_a_row

    def shutdown(self) -> None:
        """Leaves the group; safe to call when `start` did not finish."""
        if hasattr(self, "_engine"):
            self._engine.close()
            del self._engine
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _state(self) -> LearnerState:
        return LearnerState(
            policy_version=self._policy_version,
            num_ranks=self._num_ranks,
            zero_stage=self._config.zero_stage,
            dtype=self._config.dtype,
            num_skipped_in_a_row=self._num_skipped_in_a_row,
        )


class _Accumulated:
    """What has been added up of a batch: its gradient is in the engine, the rest is here."""

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.statistics = StepStatistics(device=engine.device)
        self.clock = StepClock(engine.synchronise)
        self.num_microbatches = 0
