"""Fused, sharded, padded and packed tensors by hand, and that a stale one is named."""

import pytest
import torch

from system.errors import WeightSyncError
from system.weights.held import HeldProof, describe_held
from tests.weights.memory_store import MemoryStore

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
Q, K, V = torch.randn(8, 4), torch.randn(2, 4), torch.randn(2, 4)
NORM, EMBEDDING = torch.randn(4), torch.randn(6, 4)
MANIFEST = MemoryStore().publish(
    {
        "layers.0.q_proj.weight": Q,
        "layers.0.k_proj.weight": K,
        "layers.0.v_proj.weight": V,
        "norm.weight": NORM,
        "embed.weight": EMBEDDING,
    },
    policy_version=3,
)
HELD = {"layers.0.qkv_proj.weight": torch.cat([Q, K, V]), "norm.weight": NORM, "embed.weight": EMBEDDING}


def proved(*processes: dict[str, torch.Tensor], proof: HeldProof | None = None) -> float:
    return (proof or HeldProof()).proved_fraction([describe_held(each) for each in processes], MANIFEST, fused=FUSED)


def test_a_fused_matrix_is_the_sum_of_its_parts() -> None:
    assert proved(HELD) == 1.0


def test_shards_add_up_and_repeated_parameters_count_once() -> None:
    first = HELD | {"layers.0.qkv_proj.weight": torch.cat([Q[:4], K[:1], V[:1]]), "embed.weight": EMBEDDING[:3]}
    second = HELD | {"layers.0.qkv_proj.weight": torch.cat([Q[4:], K[1:], V[1:]]), "embed.weight": EMBEDDING[3:]}
    assert proved(first, second) == 1.0
    assert proved(
        HELD | {"layers.0.qkv_proj.weight": torch.cat([Q, K, V])[:, :2]},
        HELD | {"layers.0.qkv_proj.weight": torch.cat([Q, K, V])[:, 2:]},
    ) == 1.0  # fmt: skip


def test_padding_with_zeros_changes_nothing() -> None:
    assert proved(HELD | {"embed.weight": torch.cat([EMBEDDING, torch.zeros(2, 4)])}) == 1.0


def test_what_is_packed_away_or_repeated_in_part_is_not_counted() -> None:
    packed = {"layers.0.qkv_proj.weight": torch.empty(0), "norm.weight": NORM, "embed.weight": EMBEDDING}
    assert proved(packed) == pytest.approx((4 + 24) / (48 + 4 + 24))
    repeated = HELD | {"layers.0.qkv_proj.weight": torch.cat([Q[:4], K, V])}
    assert proved(repeated, repeated) == pytest.approx((4 + 24) / (48 + 4 + 24))


@pytest.mark.parametrize("name", list(HELD))
def test_a_parameter_of_another_version_is_named(name: str) -> None:
    stale = HELD[name].clone()
    stale.view(torch.int32).view(-1)[1] ^= 1  # the last bit of one value
    proof = HeldProof()
    assert proved(HELD, proof=proof) == 1.0
    with pytest.raises(WeightSyncError, match=f"{name} of the engine is not what policy version 3 says"):
        proved(HELD | {name: stale}, proof=proof)


def test_what_differs_at_the_first_load_is_a_layout_of_its_own() -> None:
    proof = HeldProof()
    interleaved = HELD | {"norm.weight": NORM * 2}
    assert proved(interleaved, proof=proof) == pytest.approx(72 / 76)
    assert proved(interleaved, proof=proof) == pytest.approx(72 / 76)


def test_another_precision_is_not_compared() -> None:
    halves = {name: value.to(torch.bfloat16) for name, value in HELD.items()}
    doubles = {name: value.double() for name, value in HELD.items()}
    assert proved(halves) == proved(doubles) == 0.0
