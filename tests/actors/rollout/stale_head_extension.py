"""A vLLM worker extension without the LM-head repair: what our receiver would be without it."""

from actors.rollout.vllm_weight_receiver import SnapshotTransferEngine, WeightReceiverExtension


class StaleHeadExtension(WeightReceiverExtension):
    """Importing this module switches the repair off, in the engine's process that imports it."""


def _leave_lm_heads_alone(self: SnapshotTransferEngine) -> None:
    pass


SnapshotTransferEngine.repack_lm_heads = _leave_lm_heads_alone  # type: ignore[method-assign]
