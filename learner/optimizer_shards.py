"""Where DeepSpeed keeps a rank's part of the float32 weights and of AdamW's state, parameter by parameter.

Each optimizer of DeepSpeed has a layout of its own; here each becomes a list of ranges of named parameters, which a
checkpoint of any layout can be cut into. Used by learner/deepspeed_engine.py.

| ZeRO stage, dtype    | optimizer                | a rank holds                                                     |
|----------------------|--------------------------|------------------------------------------------------------------|
| 0, float32           | torch's own              | everything; the parameters are the float32 weights               |
| 0, bfloat16          | FP16_UnfusedOptimizer    | everything, float32 weights beside the parameters                |
| 1 and 2              | DeepSpeedZeroOptimizer,  | its partition of one flat tensor, linked to the parameters       |
|                      | BF16_Optimizer           |                                                                  |
| 3                    | DeepSpeedZeroOptimizer_  | its partition of each parameter, in flat tensors                 |
|                      | Stage3                   |                                                                  |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

STATE_KINDS = ("weights", "exp_avg", "exp_avg_sq")  # float32 each


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Elements start .. start + numel - 1 of a flattened parameter, as this rank's optimizer holds them."""

    name: str
    start: int
    numel: int
    flat: Tensor  # of the float32 weights; what AdamW's state belongs to
    offset: int  # in `flat`

    def share(self, *, rank: int, num_ranks: int) -> Shard:
        """This rank's part of a shard that every rank holds alike."""
        first, end = self.numel * rank // num_ranks, self.numel * (rank + 1) // num_ranks
        return Shard(
            name=self.name, start=self.start + first, numel=end - first, flat=self.flat, offset=self.offset + first
        )


class OptimizerShards:
    """`parameters` by HF name; `optimizer` is the engine's, `adam` the torch optimizer at its bottom."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, optimizer: Any, adam: torch.optim.Optimizer) -> None:
        self._parameters = parameters
        self._optimizer = optimizer
        self._adam = adam
        self.is_sharded = True
        if any(hasattr(parameter, "ds_id") for parameter in parameters.values()):
            self._held = [self._partition(name, parameter) for name, parameter in parameters.items()]
        elif any(hasattr(parameter, "_hp_mapping") for parameter in parameters.values()):
            self._held = self._linked()
        else:
            self._held = self._whole()
            self.is_sharded = False

    @property
    def held(self) -> list[Shard]:
        """All that this rank holds; every element of every parameter is held by some rank."""
        return [shard for shard in self._held if shard.numel > 0]

    @property
    def num_steps(self) -> float:
        """AdamW's count of steps; 0 before the first."""
        states = [self._adam.state.get(shard.flat, {}) for shard in self.held]
        return max((float(state["step"]) for state in states if "step" in state), default=0.0)

    def values(self, shard: Shard) -> dict[str, Tensor]:
        """The shard's part of each of STATE_KINDS, as views; before the first step AdamW has none."""
        tensors = {"weights": shard.flat.detach(), **self._adam.state.get(shard.flat, {})}
        return {
            kind: tensors[kind].view(-1)[shard.offset : shard.offset + shard.numel]
            for kind in STATE_KINDS
            if kind in tensors
        }

    def start_state(self, *, num_steps: float) -> None:
        """Let AdamW have its state (zeros where it had none) and this count of steps."""
        for shard in self._held:
            state = self._adam.state[shard.flat]
            for kind in STATE_KINDS[1:]:
                if kind not in state:
                    state[kind] = torch.zeros_like(shard.flat, memory_format=torch.preserve_format)
            state["step"] = torch.tensor(num_steps, dtype=torch.float32, device=shard.flat.device)

    @torch.no_grad()
    def push_to_parameters(self) -> None:
        """Make the parameters what the float32 weights say; collective where weights are sharded."""
        optimizer = self._optimizer
        if hasattr(optimizer, "fp16_partitioned_groups_flat"):
            optimizer.checkpoint_event_prologue()
            for number in range(len(optimizer.fp16_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(number)
            optimizer.checkpoint_event_epilogue()
        elif hasattr(optimizer, "update_lp_params"):
            optimizer.update_lp_params()
        else:
            for shard in self._held:
                parameter = self._parameters[shard.name]
                if shard.flat is not parameter:
                    parameter.copy_(shard.flat)

    def _partition(self, name: str, parameter: Any) -> Shard:
        """ZeRO-3: partitions of one parameter are equally long, and the last ones may be padded or empty."""
        optimizer = self._optimizer
        group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = length * optimizer._get_param_partition_rank(parameter)
        numel = max(0, min(length, parameter.ds_numel - start))
        flat = optimizer.fp32_partitioned_groups_flat[group]
        return Shard(name=name, start=start, numel=numel, flat=flat, offset=offset)

    def _linked(self) -> list[Shard]:
        """ZeRO 1 and 2: the parameters that overlap with this rank's partition are linked to it."""
        flats = getattr(self._optimizer, "single_partition_of_fp32_groups", None)
        if flats is None:
            flats = self._optimizer.fp32_groups_flat_partition
        shards = []
        for name, parameter in self._parameters.items():
            link: Any = getattr(parameter, "_hp_mapping", None)
            if link is not None:
                address = link.lp_fragment_address
                shards.append(
                    Shard(
                        name=name,
                        start=address.start,
                        numel=address.numel,
                        flat=flats[link.param_group_index],
                        offset=link.get_hp_fragment_address().start,
                    )
                )
        return shards

    def _whole(self) -> list[Shard]:
        """ZeRO 0: in float32 the parameters themselves, in bfloat16 a float32 tensor for each."""
        flats: dict[nn.Parameter, Tensor] = {parameter: parameter for parameter in self._parameters.values()}
        if hasattr(self._optimizer, "fp32_groups"):
            groups = zip(self._optimizer.fp16_groups, self._optimizer.fp32_groups, strict=True)
            flats = {low: full for lows, fulls in groups for low, full in zip(lows, fulls, strict=True)}
        return [
            Shard(name=name, start=0, numel=parameter.numel(), flat=flats[parameter], offset=0)
            for name, parameter in self._parameters.items()
        ]
