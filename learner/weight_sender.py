"""The sending end of a weight broadcast: rank 0 of the weight group, inside learner rank 0."""

from collections.abc import Mapping

import torch

from system.errors import WeightSyncError
from system.records import WeightGroupSpec, WeightsManifest
from system.weights.broadcast import WeightGroup, broadcast_tensors, describe_tensors


class WeightSender:
    """Broadcasts named tensors to the receivers of the weight group that was opened last.

    Names are those of the Hugging Face state dict; leave out an `lm_head` that is tied to the embedding.
    """

    def __init__(self, *, device: torch.device) -> None:
        self._device = device
        self._group: WeightGroup | None = None

    def describe(self, named_tensors: Mapping[str, torch.Tensor], *, policy_version: int) -> WeightsManifest:
        """What a broadcast of `named_tensors` would carry, with the digest of their values."""
        return describe_tensors(named_tensors, policy_version=policy_version)

    def open(self, spec: WeightGroupSpec) -> None:
        """Meet the receivers of `spec` as rank 0 and leave the former group.

        Raises DeadlineError naming the ranks that did not join, WeightSyncError when the port is taken.
        """
        self.close()
        self._group = WeightGroup(spec, rank=0)

    def send(self, named_tensors: Mapping[str, torch.Tensor], manifest: WeightsManifest) -> None:
        """Broadcast `named_tensors`, which `manifest` describes. Raises DeadlineError, WeightSyncError."""
        if self._group is None:
            raise WeightSyncError("the weight sender has no open weight group; call open(spec) first")
        broadcast_tensors(self._group, named_tensors=named_tensors, manifest=manifest, device=self._device)

    def close(self) -> None:
        """Leave the weight group, if there is one."""
        if self._group is not None:
            self._group.close()
            self._group = None
