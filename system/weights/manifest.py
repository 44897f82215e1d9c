"""What a published version of the weights is, as plain records; free of torch and Ray.

    learner publishes ─> WeightsManifest ─> receivers fetch the buckets it refers to, check and load them

A *snapshot* is one immutable version of the weights, a *bucket* a flat buffer of some of its tensors, the *canary* a
fixed sequence whose log-probabilities say whether a receiver computes with the weights that it holds.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from system.records import FloatArray

_ALIGNMENT_BYTES = 16  # a view of another dtype needs an aligned start
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlot:
    """One tensor and where it lies in its bucket."""

    name: str  # of the Hugging Face state dict; an LM head that is tied to the embedding is left out
    shape: tuple[int, ...]
    dtype: str  # torch name without the prefix: "float32"
    offset_bytes: int
    num_bytes: int
    checksum: int = 0  # see digest.py; 0 before the tensor was gathered
    content_sum: int = 0  # the same without the order of words, see held.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Tensors that travel in one flat buffer of `num_bytes` (padding included)."""

    slots: tuple[TensorSlot, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightsManifest:
    """One snapshot: what it holds, how to prove it, and where its buckets are.

    Its objects live as long as the learner process that put them, and no longer than a manifest refers to them.
    """

    policy_version: int
    architecture: str  # for messages: "Qwen2ForCausalLM"
    buckets: tuple[Bucket, ...]
    digest: str  # over names, dtypes, shapes and checksums of all tensors
    references: tuple[object, ...] = field(repr=False)  # to the store's object of each bucket
    canary_token_ids: tuple[int, ...]
    canary_logprobs: FloatArray | None  # float32[C-1], nats; None for an average, which no learner has run
    publish_seconds: float
    scoring: "WeightsManifest | None" = None  # what the scorers load where it is not this snapshot

    @property
    def slots(self) -> tuple[TensorSlot, ...]:
        """All tensors in their order."""
        return tuple(slot for bucket in self.buckets for slot in bucket.slots)

    @property
    def num_bytes(self) -> int:
        """Of the tensors, without padding."""
        return sum(slot.num_bytes for slot in self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGroupSpec:
    """Where sender (rank 0) and receivers (ranks 1 .. world_size-1) meet for broadcasts."""

    group_name: str  # unique for each membership
    host: str
    port: int
    world_size: int
    backend: Literal["gloo", "nccl"]
    timeout_seconds: float
    secret: str = field(repr=False)  # of this run: who does not know it is not let in


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverStatus:
    """What a receiver says that it holds after a load."""

    receiver: str
    policy_version: int
    digest: str  # recomputed from the bytes that arrived
    dtype: str  # precision in which the receiver computes
    canary_max_abs_diff: float | None  # nats; None where the manifest has no canary, infinite for what is no number
    seconds: float
    pause_seconds: float  # during which it could not work
    proved_fraction: float  # share of the bytes that were found again in what the receiver holds, after the load


def plan_buckets(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str], *, bucket_bytes: int
) -> tuple[Bucket, ...]:
    """Fill buckets of at most `bucket_bytes` in the order given; a larger tensor has a bucket of its own.

    Raises ValueError for an unknown dtype.
    """
    buckets: list[Bucket] = []
    slots: list[TensorSlot] = []
    end = 0
    for name, shape, dtype in zip(names, shapes, dtypes, strict=True):
        if dtype not in ITEM_BYTES:
            raise ValueError(f"{name} has dtype {dtype!r}, expected one of {', '.join(ITEM_BYTES)}")
        num_bytes = ITEM_BYTES[dtype]
        for size in shape:
            num_bytes *= size
        start = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        if slots and start + num_bytes > bucket_bytes:
            buckets.append(Bucket(slots=tuple(slots), num_bytes=end))
            slots, start = [], 0
        slots.append(TensorSlot(name=name, shape=shape, dtype=dtype, offset_bytes=start, num_bytes=num_bytes))
        end = start + num_bytes
    if slots:
        buckets.append(Bucket(slots=tuple(slots), num_bytes=end))
    return tuple(buckets)


def to_plain(manifest: WeightsManifest) -> dict[str, Any]:
    """All but the references and the time, as values that JSON and vLLM can carry."""
    logprobs = manifest.canary_logprobs
    return {
        "policy_version": manifest.policy_version,
        "architecture": manifest.architecture,
        "buckets": [asdict(bucket) for bucket in manifest.buckets],
        "digest": manifest.digest,
        "canary_token_ids": list(manifest.canary_token_ids),
        "canary_logprobs": None if logprobs is None else logprobs.tolist(),
    }


def from_plain(plain: dict[str, Any], *, references: tuple[object, ...] = ()) -> WeightsManifest:
    """The manifest of a `to_plain`, whose buckets are at `references`."""
    logprobs = plain["canary_logprobs"]
    return WeightsManifest(
        policy_version=plain["policy_version"],
        architecture=plain["architecture"],
        buckets=tuple(
            Bucket(
                slots=tuple(TensorSlot(**slot | {"shape": tuple(slot["shape"])}) for slot in bucket["slots"]),
                num_bytes=bucket["num_bytes"],
            )
            for bucket in plain["buckets"]
        ),
        digest=plain["digest"],
        references=references,
        canary_token_ids=tuple(plain["canary_token_ids"]),
        canary_logprobs=None if logprobs is None else np.asarray(logprobs, np.float32),
        publish_seconds=0.0,
    )
