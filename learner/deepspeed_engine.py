"""One DeepSpeed engine: what a learner rank asks of DeepSpeed, and the only place that knows its ways.

DeepSpeed is imported when the engine starts, because it fixes its accelerator at import.
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from learner.optimizer_shards import OptimizerShards
from learner.shard_files import HostCopy, read_shards
from system.config.schema import LearnerConfig
from system.numerics.policy_model import PolicyModel

_MODEL_PREFIX = "causal_lm."  # of PolicyModel, before the HF names


class DeepSpeedEngine:
    """Gradient accumulation, reduction, clipping and AdamW over all ranks. Every method is collective."""

    def __init__(self, model: PolicyModel, *, config: LearnerConfig, rank: int, num_ranks: int) -> None:
        import deepspeed

        self._deepspeed = deepspeed
        self._config = config
        self._num_ranks = num_ranks
        self._rank = rank
        self._host_copy: HostCopy | None = None
        # fused: one kernel over each tensor instead of several passes over memory, on CPU and on GPU.
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=config.learning_rate,
            betas=config.adam_betas,
            eps=config.adam_epsilon,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_settings(config), dist_init_required=False
        )

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    @property
    def architecture(self) -> str:
        """Class of the model in transformers, for messages."""
        return type(self._engine.module.causal_lm).__name__

    @property
    def module(self) -> nn.Module:
        """The model with DeepSpeed's hooks; under ZeRO-3 all ranks must call it together."""
        return self._engine

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Adds this rank's part of the gradient; `is_last` marks the last micro-batch of the step.

        `loss` is this rank's share of the global loss (its sum over ranks is the loss). DeepSpeed averages
        gradients over ranks, so the share is multiplied by their number first.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss * self._num_ranks)

    def step(self, *, learning_rate: float, divisor: float = 1.0) -> float | None:
        """Divides the gradient, clips, updates the parameters, clears the gradients. Returns the norm before clipping.

        The norm is that of all ranks, after the division. None: it is NaN or infinite, so that nothing but the
        gradients was changed, on no rank.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if divisor != 1.0:
            with self._divided_by(divisor):
                return self._apply()
        return self._apply()

    @contextmanager
    def _divided_by(self, divisor: float) -> Iterator[None]:
        """While it lasts, the optimizer takes the gradient for `divisor` times what it is."""
        if self._config.zero_stage == 0:
            gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
            torch._foreach_div_(gradients, divisor)
            yield
            return
        optimizer = self._engine.optimizer
        optimizer.loss_scale = divisor  # ZeRO divides by it where it clips, in the gradients' own precision
        try:
            yield
        finally:
            optimizer.loss_scale = 1.0

    def _apply(self) -> float | None:
        norm_before_clipping = self._plain_gradient_norm()
        if norm_before_clipping is None:
            self._engine.step()  # checks the norm over all ranks itself
            return float(self._engine.get_global_grad_norm()) if self._engine.was_step_applied() else None
        if not math.isfinite(norm_before_clipping):
            self._engine.zero_grad()
            return None
        self._engine.step()
        return norm_before_clipping

    def _plain_gradient_norm(self) -> float | None:
        """The norm where DeepSpeed clips plain `.grad`s and neither keeps nor checks it: float32 without ZeRO."""
        if self._config.zero_stage > 0 or self._config.dtype != "float32":
            return None
        gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def gather_rows(self, row: Tensor) -> Tensor:
        """All ranks' `row` [K] as [num_ranks, K], by one collective."""
        rows = [torch.empty_like(row) for _ in range(self._num_ranks)]
        torch.distributed.all_gather(rows, row)
        return torch.stack(rows)

    def parameters(self) -> dict[str, nn.Parameter]:
        """By HF name, in the model's order; a tied LM head appears once, as the embedding. Shards under ZeRO-3."""
        return {
            name.removeprefix(_MODEL_PREFIX): parameter for name, parameter in self._engine.module.named_parameters()
        }

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """While it lasts, every rank sees `parameters` in full."""
        if self._config.zero_stage < 3:
            yield
            return
        with self._deepspeed.zero.GatheredParameters(list(parameters)):
            yield

    def gather_full_weights(self) -> dict[str, Tensor]:
        """Contiguous full parameters under their HF names on rank 0; an empty dict elsewhere. For an export.

        ZeRO 0-2: rank 0's own parameters, without a copy; they change with the next step. ZeRO-3: copies in host
        memory, gathered one at a time.
        """
        weights: dict[str, Tensor] = {}
        is_sharded = self._config.zero_stage == 3
        for name, parameter in self.parameters().items():
            with self.gathered([parameter]):
                if self._rank == 0:
                    full = parameter.detach()
                    weights[name] = full.to("cpu", copy=True) if is_sharded else full.contiguous()
        return weights

    def host_copy(self) -> HostCopy:
        """Copies this rank's part of the float32 weights and of AdamW's state into host memory, to be written later.

        The memory is used again by the next copy.
        """
        if self._host_copy is None:
            self._host_copy = HostCopy(self._shards(), rank=self._rank, num_ranks=self._num_ranks)
        self._host_copy.take()
        return self._host_copy

    def load(self, directory: str, *, num_files: int) -> None:
        """Restores what the host copies of `num_files` ranks of any ZeRO stage wrote. Raises CheckpointError."""
        shards = self._shards()
        read_shards(Path(directory), into=shards, num_files=num_files)
        shards.push_to_parameters()

    def _shards(self) -> OptimizerShards:
        return OptimizerShards(self.parameters(), optimizer=self._engine.optimizer, adam=self._engine.basic_optimizer)

    def synchronise(self) -> None:
        """Waits for the device, so that wall-clock times belong to the phase that caused them."""
        self._deepspeed.accelerator.get_accelerator().synchronize()

    def close(self) -> None:
        self._engine.destroy()


def join_process_group(*, config: LearnerConfig, rank: int, num_ranks: int, host: str, port: int) -> None:
    """Meets the other ranks at `host:port` (rank 0's node). Raises torch.distributed.DistError on time-out."""
    # Every rank sees only its own device (Ray sets CUDA_VISIBLE_DEVICES), so its local number is always 0.
    os.environ.update(
        DS_ACCELERATOR=config.device,
        RANK=str(rank),
        LOCAL_RANK="0",
        WORLD_SIZE=str(num_ranks),
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    torch.distributed.init_process_group(
        config.backend,
        init_method=f"tcp://{host}:{port}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=max(config.start_timeout_seconds, config.step_timeout_seconds)),
    )
    # DeepSpeed calls collectives by names that torch deprecates, once a line for each call.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    # No op counts as compatible: otherwise DeepSpeed runs the compiler on each start, to find out and then to
    # build a shared-memory reduction that only inference would use.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=config.backend, auto_mpi_discovery=False)


def deepspeed_settings(config: LearnerConfig) -> dict[str, Any]:
    """DeepSpeed's configuration; batch sizes are nominal, since micro-batches are counted in tokens here."""
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": config.device != "cpu"}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,  # with offload, too: DeepSpeed's own would need a compiler
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "steps_per_print": 1 << 30,
    }
    if config.dtype == "bfloat16" and config.zero_stage > 0:
        # Without ZeRO, DeepSpeed accumulates in the parameters' own precision only.
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
