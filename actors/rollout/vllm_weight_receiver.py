"""The receiving end inside vLLM's worker processes: a weight-transfer engine of our own.

vLLM imports this module in each worker process because `worker_extension_cls` names
`WeightReceiverExtension`; importing it registers the engine. A snapshot comes from a file in shared memory,
where the actor has staged it, or by broadcast: each worker process is then one rank of the weight
group, `first_rank` + its rank in the engine (tensor parallel). The module also sees
to the end of these processes: they end when their owner is gone, however it died, and without delay.
"""

import atexit
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from system.errors import WeightSyncError
from system.weights.broadcast import WeightGroup, receive_buckets, transfer_device
from system.weights.digest import checked_buckets, named_tensors
from system.weights.held import Held, describe_held
from system.weights.manifest import WeightGroupSpec, WeightsManifest, from_plain
from system.weights.staging import staged_buckets

BACKEND_NAME = "credence"
OWNER_VARIABLE = "CREDENCE_ENGINE_OWNER_PID"  # set by actors/rollout/vllm_engine.py, read in the engine's processes
_OWNER_CHECK_SECONDS = 1.0


@dataclass
class GroupJoinInfo(WeightTransferInitInfo):
    """WeightGroupSpec plus `first_rank`, as plain values that vLLM can send to its workers."""

    group_name: str
    host: str
    port: int
    world_size: int
    backend: Literal["gloo", "nccl"]
    timeout_seconds: float
    secret: str
    first_rank: int


@dataclass
class SnapshotInfo(WeightTransferUpdateInfo):
    """A WeightsManifest as plain values, and where its buckets are."""

    manifest: dict[str, Any]
    staged_at: str | None  # None: they come by broadcast


class SnapshotTransferEngine(WeightTransferEngine[GroupJoinInfo, SnapshotInfo]):
    """Loads a snapshot layer by layer into the running model."""

    init_info_cls = GroupJoinInfo
    update_info_cls = SnapshotInfo

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._group: WeightGroup | None = None
        self.received: tuple[int, str] | None = None  # policy version, digest

    def init_transfer_engine(self, init_info: GroupJoinInfo) -> None:
        """Join the weight group, leaving the former one."""
        self.shutdown()
        spec = WeightGroupSpec(
            group_name=init_info.group_name,
            host=init_info.host,
            port=init_info.port,
            world_size=init_info.world_size,
            backend=init_info.backend,
            timeout_seconds=init_info.timeout_seconds,
            secret=init_info.secret,
        )
        self._group = WeightGroup(spec, rank=init_info.first_rank + self.parallel_config.rank)

    def start_weight_update(self) -> None:
        # layers that an update which broke off has left half loaded would count the old half as part of the new one
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                info.load_numel = 0
                info.loaded_weights = []
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SnapshotInfo) -> None:
        manifest = from_plain(update_info.manifest)
        self.received = None
        if update_info.staged_at is not None:  # the actor has checked what lies there
            buffers = staged_buckets(update_info.staged_at, manifest.buckets)
            for buffer, bucket in zip(buffers, manifest.buckets, strict=True):
                self.model.load_weights(named_tensors(buffer, bucket))
        else:
            self._load_broadcast(manifest)
        self.received = (manifest.policy_version, manifest.digest)

    def _load_broadcast(self, manifest: WeightsManifest) -> None:
        if self._group is None:
            raise WeightSyncError("this engine has not joined a weight group")
        device = transfer_device(self._group.spec, device=self.device)
        try:
            for tensors in checked_buckets(receive_buckets(self._group, manifest, device=device), manifest):
                self.model.load_weights(tensors)
        except BaseException:
            self.shutdown()  # its peers notice at once
            raise

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        self.repack_lm_heads()

    def repack_lm_heads(self) -> None:
        """Run the LM heads' post-load processing again.

        On CPU it packs the weight for the matrix product. A head that is tied to the embedding
        receives no weight of its own, so reloading layer by layer does not touch it and it would go
        on with the packed copy of the old weights.
        """
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None


def _end_with_owner(owner_pid: int) -> None:
    while True:
        try:
            os.kill(owner_pid, 0)
        except ProcessLookupError:
            os._exit(1)  # no clean-up: nobody is left to talk to
        time.sleep(_OWNER_CHECK_SECONDS)


WeightTransferEngineFactory.register_engine(BACKEND_NAME, SnapshotTransferEngine)


class WeightReceiverExtension:
    """Mixed into vLLM's worker class; its methods are reached by `collective_rpc`."""

    if TYPE_CHECKING:
        weight_transfer_engine: SnapshotTransferEngine

    def received_weights(self) -> tuple[int, str] | None:
        """(policy version, digest of the bytes that arrived), or None before the first update."""
        return self.weight_transfer_engine.received

    def held_weights(self) -> tuple[dict[str, Held], dict[str, list[str]]]:
        """What this process holds, by parameter, and which modules of the model are fused of which."""
        model = self.weight_transfer_engine.model
        fused = getattr(model, "packed_modules_mapping", {})
        return describe_held(dict(model.named_parameters())), {name: list(parts) for name, parts in fused.items()}


if int(os.environ.get(OWNER_VARIABLE, os.getpid())) != os.getpid():
    threading.Thread(target=_end_with_owner, args=(int(os.environ[OWNER_VARIABLE]),), daemon=True).start()
    # vLLM has cleaned up by then; taking the interpreter down as well would cost every shutdown seconds.
    atexit.register(os._exit, 0)
