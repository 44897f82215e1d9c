"""Whether a receiver holds the weights of a manifest, by sums over the tensors that it has made of them.

An engine fuses tensors (q, k and v into one matrix), shards them over its processes, pads them with zeros, or packs
them into a layout of its own. A content sum survives all but the last: of fused tensors it is the sum of the parts', of
shards the sum over processes. What is packed, torn within a word or partly repeated is left out and not counted.
"""

from collections.abc import Mapping, Sequence

import torch

from system.errors import WeightSyncError
from system.weights.digest import content_sum
from system.weights.manifest import ITEM_BYTES, TensorSlot, WeightsManifest

_WORD_BYTES = 8
_MODULUS = 1 << 64

Held = tuple[int, int, str]  # content sum, bytes, dtype: plain values, which vLLM can carry


def describe_held(parameters: Mapping[str, torch.Tensor]) -> dict[str, Held]:
    """Every parameter of one process whose rows are whole words."""
    return {
        name: (
            int(content_sum(parameter)),
            parameter.numel() * parameter.element_size(),
            str(parameter.dtype).removeprefix("torch."),
        )
        for name, parameter in parameters.items()
        if parameter.numel() and parameter.shape and parameter.shape[-1] * parameter.element_size() % _WORD_BYTES == 0
    }


class HeldProof:
    """Compares one receiver with one manifest after the other.

    What differs at the first load, whose result the canary judges, is laid out in a way of its own; it is left out from
    then on. What agreed once must agree always.
    """

    def __init__(self) -> None:
        self._comparable: frozenset[str] | None = None

    def proved_fraction(
        self, held: Sequence[Mapping[str, Held]], manifest: WeightsManifest, *, fused: Mapping[str, Sequence[str]]
    ) -> float:
        """Share of the snapshot's bytes whose sums were found in `held` (one `describe_held` for each process).

        `fused`: last part of a module's name in the engine -> those that it was made of ("qkv_proj" -> "q_proj", ...).
        Raises WeightSyncError naming a parameter that holds something else.
        """
        slots = {slot.name: slot for slot in manifest.slots}
        proved: dict[str, int] = {}
        for name in held[0]:
            sources = _sources(name, slots=slots, fused=fused)
            parts = [process[name] for process in held if name in process]
            verdict = _compare(parts, sources) if sources and len(parts) == len(held) else None
            if verdict is False and self._comparable is not None and name in self._comparable:
                raise WeightSyncError(f"{name} of the engine is not what policy version {manifest.policy_version} says")
            if verdict:
                proved[name] = sum(slot.num_bytes for slot in sources)
        if self._comparable is None:
            self._comparable = frozenset(proved)
        return sum(proved.values()) / manifest.num_bytes


def _compare(parts: Sequence[Held], sources: Sequence[TensorSlot]) -> bool | None:
    """Whether the processes' parts hold the sources; None when sums cannot tell."""
    are_whole = all(slot.shape and slot.shape[-1] * ITEM_BYTES[slot.dtype] % _WORD_BYTES == 0 for slot in sources)
    if not are_whole or {dtype for *_, dtype in parts} != {slot.dtype for slot in sources}:
        return None
    wanted_bytes = sum(slot.num_bytes for slot in sources)
    wanted = sum(slot.content_sum for slot in sources) % _MODULUS
    if all(num_bytes >= wanted_bytes for _, num_bytes, _ in parts):  # each process has all of it, perhaps padded
        return all(content % _MODULUS == wanted for content, *_ in parts)
    if sum(num_bytes for _, num_bytes, _ in parts) == wanted_bytes:  # each has its share
        return sum(content for content, *_ in parts) % _MODULUS == wanted
    return None


def _sources(name: str, *, slots: Mapping[str, TensorSlot], fused: Mapping[str, Sequence[str]]) -> list[TensorSlot]:
    """The tensors of the manifest that make up the engine's parameter `name`; none when one of them is missing."""
    path, _, kind = name.rpartition(".")
    parent, _, module = path.rpartition(".")
    names = [".".join(filter(None, (parent, part, kind))) for part in fused.get(module, [module])]
    found = [slots[each] for each in names if each in slots]
    return found if len(found) == len(names) else []
