"""The learner's state in files: one of each rank, with the ranges of parameters that it holds.

    rank_00000.safetensors     weights:NAME, exp_avg:NAME, exp_avg_sq:NAME      float32, flat
                               metadata.shards: the first element of each NAME, AdamW's count of steps

Every rank reads the ranges that it needs from all files, so that the layout may differ from that of the ranks that
wrote them. Safetensors hold data and nothing else: a file cannot execute anything. Used by learner/deepspeed_engine.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from learner.optimizer_shards import STATE_KINDS, OptimizerShards, Shard
from system.errors import CheckpointError


class HostCopy:
    """A copy of a rank's shards in host memory. Its memory is kept for the next copy."""

    def __init__(self, shards: OptimizerShards, *, rank: int, num_ranks: int) -> None:
        self._source = shards
        self._rank = rank
        self._shards = [
            shard if shards.is_sharded else shard.share(rank=rank, num_ranks=num_ranks) for shard in shards.held
        ]
        size = len(STATE_KINDS) * sum(shard.numel for shard in self._shards)
        # pinned, the copy is one transfer at the speed of the bus
        self._memory = torch.empty(size, dtype=torch.float32, pin_memory=torch.cuda.is_available())
        self._tensors: dict[str, Tensor] = {}
        self._num_steps = 0.0

    def take(self) -> None:
        """Copy the state as it is; `write` must have ended."""
        self._num_steps = self._source.num_steps
        self._tensors = {}
        offset = 0
        for shard in self._shards:
            for kind, value in self._source.values(shard).items():
                copy = self._memory[offset : offset + shard.numel]
                copy.copy_(value, non_blocking=True)
                self._tensors[f"{kind}:{shard.name}"] = copy
                offset += shard.numel
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def write(self, folder: Path) -> list[Path]:
        """Write the copy; safe while the optimizer goes on."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank_{self._rank:05d}.safetensors"
        content = {"num_steps": self._num_steps, "starts": {shard.name: shard.start for shard in self._shards}}
        # one entry: several come in another order each time, and the same state would not give the same file
        save_file(self._tensors, path, metadata={"shards": json.dumps(content)})
        return [path]


def read_shards(folder: Path, *, into: OptimizerShards, num_files: int) -> None:
    """Fill `into` from the files of all ranks. Raises CheckpointError when they do not hold all of it."""
    paths = [folder / f"rank_{rank:05d}.safetensors" for rank in range(num_files)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(f"{folder} holds no complete learner state: {', '.join(missing)} is missing")
    try:
        saved = [_SavedFile.open(path) for path in paths]
        num_steps = max(file.num_steps for file in saved)
        into.start_state(num_steps=num_steps)
        for shard in into.held:
            _fill(shard, into.values(shard), saved=saved, has_state=num_steps > 0, folder=folder)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be read as a learner state: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _SavedFile:
    """What one rank wrote, mapped into memory."""

    file: Any  # safetensors' handle
    num_steps: float
    ranges: dict[str, tuple[int, int]]  # of each tensor: first element and the one after the last

    @classmethod
    def open(cls, path: Path) -> _SavedFile:
        file = safe_open(path, framework="pt")
        content = json.loads((file.metadata() or {})["shards"])
        starts = content["starts"]
        ranges = {}
        for key in file.keys():  # noqa: SIM118 - a handle, which is no dictionary
            start = starts[key.partition(":")[2]]
            ranges[key] = (start, start + file.get_slice(key).get_shape()[0])
        return cls(file=file, num_steps=content["num_steps"], ranges=ranges)

    def parts(self, key: str, *, start: int, end: int) -> Iterator[tuple[int, Tensor]]:
        """The elements start .. end - 1 as far as this file has them, with the number of the first one."""
        first, last = self.ranges.get(key, (0, 0))
        first, last = max(first, start), min(last, end)
        if first < last:
            begin = self.ranges[key][0]
            yield first, self.file.get_slice(key)[first - begin : last - begin]


def _fill(
    shard: Shard, values: dict[str, Tensor], *, saved: Sequence[_SavedFile], has_state: bool, folder: Path
) -> None:
    end = shard.start + shard.numel
    for kind, value in values.items():
        num_read = 0
        for file in saved:
            for first, part in file.parts(f"{kind}:{shard.name}", start=shard.start, end=end):
                value[first - shard.start : first - shard.start + len(part)].copy_(part)
                num_read += len(part)
        if num_read != shard.numel and (has_state or kind == "weights"):
            raise CheckpointError(
                f"{folder} holds {num_read} of the {shard.numel} values of {kind} of {shard.name} that "
                "this rank needs: it is of another model"
            )
