"""Small random models of many families: packed passes equal plain transformers, or the model is refused by name."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3Config,
    StableLmConfig,
)  # fmt: skip

from system.errors import ConfigError
from system.numerics.model_agreement import require_agreement
from system.numerics.packed_attention import PackedLayout
from system.numerics.policy_model import PolicyModel, load_policy_model, sequence_statistics

NUM_TOKENS = 64
WINDOW = 16
COMMON = {
    "vocab_size": NUM_TOKENS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
GPT2 = {"vocab_size": NUM_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128, "initializer_range": 0.2}
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]
TRAINABLE: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON),
    "qwen3": Qwen3Config(**COMMON, head_dim=32),
    "mistral with a window": MistralConfig(**COMMON, sliding_window=WINDOW),
    "gemma3 with a window in some layers": Gemma3TextConfig(
        **COMMON, head_dim=32, sliding_window=WINDOW, layer_types=WINDOWED
    ),
    "phi3": Phi3Config(**COMMON),
    "gpt_neox": GPTNeoXConfig(**{name: value for name, value in COMMON.items() if name != "num_key_value_heads"}),
    "gpt2": GPT2Config(**GPT2, bos_token_id=None, eos_token_id=1),
}


def write(folder: Path, config: PreTrainedConfig) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def load(path: str, *, dtype: torch.dtype = torch.float32) -> PolicyModel:
    return load_policy_model(path, revision=None, trust_remote_code=False, dtype=dtype, device=torch.device("cpu"))


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_long_sequence_has_the_logprobs_of_plain_transformers(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, TRAINABLE[name])
    model = load(path)
    ids = torch.randint(NUM_TOKENS, (100,), generator=torch.Generator().manual_seed(1))
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = plain(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    found = sequence_statistics(model, ids.tolist(), device=torch.device("cpu"), temperature=1.0).logprobs
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    load(path, dtype=torch.bfloat16)


def refusal(path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_model_whose_state_leaks_between_packed_sequences_is_refused(tmp_path: Path) -> None:
    # FalconH1's config does not name its layers: the leak itself is found.
    config = FalconH1Config(
        **COMMON, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1, mamba_d_state=16
    )
    message = refusal(write(tmp_path, config))
    assert "FalconH1ForCausalLM in" in message
    assert "nats with the one that is packed before it" in message


def test_a_convolution_is_refused_from_the_config_of_its_layers(tmp_path: Path) -> None:
    config = Lfm2Config(**COMMON, layer_types=["conv", "full_attention", "conv"])
    assert "lfm2 model has layers of type conv" in refusal(write(tmp_path, config))


def test_a_model_that_hands_nothing_on_to_its_attention_is_refused(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, StableLmConfig(**COMMON)))
    assert "StableLmForCausalLM in" in message
    assert "do not hand on where the packed sequences lie" in message


def test_more_than_rounding_between_a_packed_pass_and_single_ones_is_refused() -> None:
    sequences = [torch.arange(5), torch.arange(3), torch.arange(5)]
    plain = [torch.full((4,), -1.0), torch.full((2,), -2.0)]

    def check(*, by: float, dtype: torch.dtype) -> None:
        require_agreement(
            sequences, plain=plain, packed_logprobs=lambda _: [each - by for each in plain], name="Own", dtype=dtype
        )

    check(by=9e-4, dtype=torch.float32)
    check(by=0.2, dtype=torch.bfloat16)
    with pytest.raises(
        ConfigError, match=r"'Own', .* packed log-probabilities are 0\.2 nats off those of transformers"
    ):
        check(by=0.2, dtype=torch.float32)
    with pytest.raises(ConfigError, match="changes by nan nats"):
        check(by=float("nan"), dtype=torch.bfloat16)


def test_weights_that_are_nan_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(TRAINABLE["llama"])
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path)
    expected = "model.layers.1.mlp.up_proj.weight has 1 of 6,144 values that are NaN or infinite"
    assert expected in refusal(str(tmp_path))


def test_a_window_hides_what_lies_before_it(tmp_path: Path) -> None:
    config = MistralConfig(**{**COMMON, "num_hidden_layers": 1}, sliding_window=WINDOW)
    model = load(write(tmp_path, config))
    ids = torch.arange(40) % NUM_TOKENS
    other = torch.cat([(ids[:10] + 7) % NUM_TOKENS, ids[10:]])
    layout = PackedLayout.build(torch.tensor([0, 40]), device=torch.device("cpu"))
    positions = torch.arange(40)
    with torch.no_grad():
        one, two = (model(each, positions, layout, positions[:-1], ids[1:], 1.0)[0] for each in (ids, other))
    # The newest of the changed tokens is at position 9: position 24 sees it last.
    assert torch.equal(one[25:], two[25:])
    assert not torch.allclose(one[24], two[24], atol=1e-6)
