"""The policy model against plain transformers, for a model with learned positions and dropout of its own."""

from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from system.numerics.packed_attention import PackedLayout
from system.numerics.policy_model import load_policy_model

NUM_TOKENS = 11
LENGTHS = (7, 2, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("opt")
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        init_std=0.3,
        dropout=0.5,
        attention_dropout=0.5,
        layerdrop=0.5,
        tie_word_embeddings=False,
        dtype="float32",
    )
    OPTForCausalLM(config).save_pretrained(path)
    return path


def test_packed_sequences_with_learned_positions_equal_single_ones_and_nothing_is_dropped(folder: Path) -> None:
    torch.manual_seed(1)
    sequences = [torch.randint(NUM_TOKENS, (length,)) for length in LENGTHS]
    plain = OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = torch.cat(
            [
                plain(each[None]).logits[0, :-1].log_softmax(-1).gather(-1, each[1:, None]).squeeze(-1)
                for each in sequences
            ]
        )
    model = load_policy_model(
        str(folder), revision=None, trust_remote_code=False, dtype=torch.float32, device=torch.device("cpu")
    )
    assert model.training
    starts = torch.tensor([0, *LENGTHS]).cumsum(0)
    is_predictor = torch.ones(int(starts[-1]), dtype=torch.bool)
    is_predictor[starts[1:] - 1] = False
    predictors = is_predictor.nonzero().squeeze(-1)
    token_ids = torch.cat(sequences)
    logprobs, _, _ = model(
        token_ids,
        torch.cat([torch.arange(length) for length in LENGTHS]),
        PackedLayout.build(starts, device=torch.device("cpu")),
        predictors,
        token_ids[predictors + 1],
        1.0,
    )
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)


def test_loading_a_policy_switches_off_the_attention_of_cudnn(folder: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_policy_model(
        str(folder), revision=None, trust_remote_code=False, dtype=torch.float32, device=torch.device("cpu")
    )
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
