"""Models that cannot be trained are refused from their config.json alone, in one line with name and reason."""

import re

import pytest

from system.config.model_checks import attention_window, check_description
from system.errors import ConfigError

REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "quantized": ({"model_type": "llama", "quantization_config": {"quant_method": "fp8"}}, "llama model is quantized"),
    "experts": ({"model_type": "qwen3_moe", "num_experts": 128}, "qwen3_moe model has 128 experts .* synchronised"),
    "convolution": ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"]}, "layers of type conv, whose"),
    "recurrent": (
        {"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]},
        "layers of type linear_attention, whose state would leak",
    ),
    "no attention": ({"model_type": "mamba2"}, "mamba2 model computes attention in code of its own"),
    "falcon": ({"model_type": "falcon"}, "falcon model computes attention in code of its own"),
    "gptj": ({"model_type": "gptj"}, "gptj model computes attention in code of its own"),
    "gpt_neo": ({"model_type": "gpt_neo"}, "gpt_neo model computes attention in code of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_trained_is_named_with_the_reason(name: str) -> None:
    description, message = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        check_description("models/mine", description=description)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "description",
    [
        {"model_type": "qwen2", "layer_types": ["full_attention", "sliding_attention"]},
        {"model_type": "mistral", "sliding_window": 48},
        {"model_type": "llama", "num_experts": 0},
        {"model_type": "a_model_with_code_of_its_own"},
    ],
)
def test_dense_models_with_attention_pass(description: dict[str, object]) -> None:
    check_description("models/mine", description=description)


def test_a_window_counts_only_where_it_is_switched_on() -> None:
    assert attention_window({"model_type": "mistral", "sliding_window": 48}) == 48
    assert attention_window({"model_type": "mistral", "sliding_window": None}) is None
    assert attention_window({"model_type": "qwen2", "sliding_window": 4096}) is None
    assert attention_window({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True}) == 4096
