"""Packed sequences through a real transformer equal the same sequences one at a time."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from system.numerics.packed_attention import (
    MAX_PADDING_SHARE,
    PACKED_ATTENTION,
    PackedLayout,
    TreeVectors,
    no_attention_mask,
    packed_attention,
)

LENGTHS = [1, 37, 2, 90, 12, 12, 64, 5]


def build_model(*, attention: str, num_key_value_heads: int) -> PreTrainedModel:
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, no_attention_mask)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=128,
    )
    return Qwen2ForCausalLM._from_config(config, attn_implementation=attention)


def packed_inputs() -> tuple[torch.Tensor, torch.Tensor, PackedLayout]:
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(0, 32, (1, sum(LENGTHS)), generator=generator)
    position_ids = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)
    return token_ids, position_ids, PackedLayout.build(starts, device=torch.device("cpu"))


@pytest.mark.parametrize("num_key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_logits_and_gradients_equal_one_sequence_at_a_time(num_key_value_heads: int, checkpointing: bool) -> None:
    packed = build_model(attention=PACKED_ATTENTION, num_key_value_heads=num_key_value_heads)
    plain = build_model(attention="eager", num_key_value_heads=num_key_value_heads)
    if checkpointing:
        packed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        packed.train()
    token_ids, position_ids, layout = packed_inputs()
    logits = packed(input_ids=token_ids, position_ids=position_ids, packed_layout=layout, use_cache=False).logits[0]
    alone = torch.cat([plain(input_ids=piece).logits[0] for piece in token_ids.split(LENGTHS, dim=1)])
    torch.testing.assert_close(logits, alone, rtol=0, atol=1e-5)
    for value in (logits, alone):
        value.log_softmax(dim=-1)[:, 3].sum().backward()
    for (name, one), (_, other) in zip(packed.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-5), name


def test_blocks_waste_little_and_cover_every_token_once() -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(20, 121, (300,), generator=generator)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    layout = PackedLayout.build(starts, device=torch.device("cpu"))
    cells = torch.cat([block.gather for block in layout.blocks])
    assert torch.equal(cells[layout.scatter], torch.arange(int(starts[-1])))
    assert len(cells) <= int(starts[-1]) / (1 - MAX_PADDING_SHARE)
    assert len(layout.blocks) < 10


def test_what_would_be_computed_wrongly_is_refused() -> None:
    _, _, layout = packed_inputs()
    states = torch.zeros(1, 2, sum(LENGTHS), 4)
    module = torch.nn.Identity()
    trunk = TreeVectors(limits=torch.arange(1, 4), steps=torch.full((3,), -1), answers=torch.full((3,), -1))
    tree = PackedLayout.build(torch.tensor([0, 3]), device=torch.device("cpu"), trees=trunk)
    three = states[:, :, :3]
    with pytest.raises(ValueError, match="a tree of sequences exceeds the model's window of 2 tokens"):
        packed_attention(module, three, three, three, None, packed_layout=tree, sliding_window=2)
    with pytest.raises(ValueError, match="do not hand on where the packed sequences lie"):
        packed_attention(module, states, states, states, None)
    with pytest.raises(ValueError, match="soft cap"):
        packed_attention(module, states, states, states, None, packed_layout=layout, softcap=30.0)
    with pytest.raises(ValueError, match="must ascend strictly"):
        PackedLayout.build(torch.tensor([0, 3, 3]), device=torch.device("cpu"))


def plain_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N, H, D] in float64, one head of queries after the other."""
    share = query.shape[1] // key.shape[1]
    heads = []
    for head in range(query.shape[1]):
        scores = query[0, head].double() @ key[0, head // share].double().T / query.shape[-1] ** 0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        heads.append(weights @ value[0, head // share].double())
    return torch.stack(heads, dim=1)


@pytest.mark.parametrize("num_key_value_heads", [4, 2, 1])
def test_grouped_query_heads_with_a_mask_equal_plain_attention(num_key_value_heads: int) -> None:
    # trunk of 4, and two branches of 2 behind its first 2 and all 4 tokens
    steps = torch.tensor([-1, -1, -1, -1, 0, 0, 1, 1])
    vectors = TreeVectors(
        limits=torch.tensor([1, 2, 3, 4, 2, 2, 4, 4]), steps=steps, answers=torch.zeros(8).long().where(steps >= 0, -1)
    )
    layout = PackedLayout.build(torch.tensor([0, 8]), device=torch.device("cpu"), trees=vectors)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    for token, keys in enumerate(
        [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 2, 3, 6], [0, 1, 2, 3, 6, 7]]
    ):
        mask[token, keys] = True
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(1, 4, 8, 16, generator=generator)
    key, value = torch.randn(2, 1, num_key_value_heads, 8, 16, generator=generator)
    attended, _ = packed_attention(torch.nn.Identity(), query, key, value, None, packed_layout=layout)
    expected = plain_attention(query, key, value, mask)
    torch.testing.assert_close(attended[0].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_a_masked_call_with_grouped_query_heads_stores_no_scores() -> None:
    device = torch.device("cuda")
    length, heads = 4096, 16
    vectors = TreeVectors(
        limits=torch.arange(1, length + 1), steps=torch.full((length,), -1), answers=torch.full((length,), -1)
    )
    layout = PackedLayout.build(torch.tensor([0, length]), device=device, trees=vectors)
    query = torch.randn(1, heads, length, 128, device=device, dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 2, length, 128, device=device, dtype=torch.bfloat16)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    packed_attention(torch.nn.Identity(), query, key, value, None, packed_layout=layout)
    scores = heads * length * length * query.element_size()
    assert torch.cuda.max_memory_allocated() - before < scores / 2
