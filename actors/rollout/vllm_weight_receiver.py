"""The receiving end inside vLLM's worker processes: a weight-transfer engine of our own.

vLLM imports this module in each worker process because `worker_extension_cls` names
`WeightReceiverExtension`; importing it registers the engine. Each worker process is one rank of
the weight group: `first_rank` + its rank in the engine (tensor parallel). The module also sees
to the end of these processes: they end when their owner is gone, however it died, and without delay.
"""

import atexit
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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

from system.errors import WeightSyncError
from system.records import WeightGroupSpec, WeightsManifest
from system.weights.broadcast import WeightGroup, receive_tensors

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
    bucket_bytes: int
    first_rank: int


@dataclass
class ManifestInfo(WeightTransferUpdateInfo):
    """WeightsManifest as plain values."""

    policy_version: int
    names: list[str]
    shapes: list[list[int]]
    dtypes: list[str]
    num_bytes: int
    digest: str


class BroadcastWeightTransferEngine(WeightTransferEngine[GroupJoinInfo, ManifestInfo]):
    """Receives a broadcast from learner rank 0 and loads it layer by layer into the running model."""

    init_info_cls = GroupJoinInfo
    update_info_cls = ManifestInfo

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
            bucket_bytes=init_info.bucket_bytes,
        )
        self._group = WeightGroup(spec, rank=init_info.first_rank + self.parallel_config.rank)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ManifestInfo) -> None:
        if self._group is None:
            raise WeightSyncError("this engine has not joined a weight group")
        manifest = WeightsManifest(
            policy_version=update_info.policy_version,
            names=tuple(update_info.names),
            shapes=tuple(tuple(shape) for shape in update_info.shapes),
            dtypes=tuple(update_info.dtypes),
            num_bytes=update_info.num_bytes,
            digest=update_info.digest,
        )
        digest = receive_tensors(self._group, manifest=manifest, device=self.device, load=self.model.load_weights)
        self.received = (manifest.policy_version, digest)

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


WeightTransferEngineFactory.register_engine(BACKEND_NAME, BroadcastWeightTransferEngine)


class WeightReceiverExtension:
    """Mixed into vLLM's worker class; its methods are reached by `collective_rpc`."""

    if TYPE_CHECKING:
        weight_transfer_engine: BroadcastWeightTransferEngine

    def received_weights(self) -> tuple[int, str] | None:
        """(policy version, digest of the bytes that arrived), or None before the first update."""
        return self.weight_transfer_engine.received


if int(os.environ.get(OWNER_VARIABLE, os.getpid())) != os.getpid():
    threading.Thread(target=_end_with_owner, args=(int(os.environ[OWNER_VARIABLE]),), daemon=True).start()
    # vLLM has cleaned up by then; taking the interpreter down as well would cost every shutdown seconds.
    atexit.register(os._exit, 0)
