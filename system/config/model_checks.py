"""What a model's config.json says that this system cannot train, found before a weight is read.

Called by system/config/machine.py for a model folder at a dry run, and by system/numerics/policy_model.py for every
model, also one of the hub, when it is loaded.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from system.errors import ConfigError

_QUANTIZED = ("quantization_config", "compression_config")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}


def check_description(model_path: str, *, description: Mapping[str, object]) -> None:
    """Raises ConfigError, with the kind of model and the reason, for a config.json of what cannot be trained."""
    kind = str(description.get("model_type", "unknown"))
    reason = _refusal(kind, description)
    if reason is not None:
        raise ConfigError(
            "model.path",
            given=model_path,
            expected=f"a dense model with attention in every layer and plain weights; this {kind} model {reason[0]}",
            fix=reason[1],
        )


def attention_window(description: Mapping[str, object]) -> int | None:
    """Tokens that a sliding-window layer looks back, itself included; None without such layers."""
    window = description.get("sliding_window")
    # Qwen2 and its kin write a window that only use_sliding_window switches on.
    is_used = description.get("use_sliding_window", not str(description.get("model_type", "")).startswith("qwen"))
    return window if isinstance(window, int) and is_used else None


def _refusal(kind: str, description: Mapping[str, object]) -> tuple[str, str] | None:
    """What the model has, and the fix; None for one that may be trained."""
    for key in _QUANTIZED:
        if description.get(key):
            return f"is quantized ({key} in its config)", "take the model in bfloat16 or float32"
    for key in _EXPERTS:
        number = description.get(key)
        if isinstance(number, int) and number > 1:
            return (
                f"has {number} experts ({key}), which the learner holds as one tensor a layer and the engine under one "
                "name each: they cannot be synchronised",
                "take a dense model",
            )
    layers = description.get("layer_types")
    others = sorted(set(map(str, layers)) - _ATTENTION_LAYERS) if isinstance(layers, list | tuple) else []
    if others:
        return (
            f"has layers of type {', '.join(others)}, whose state would leak from one packed sequence into the next",
            "take a model with attention in every layer",
        )
    if not _is_on_attention_interface(kind):
        return (
            "computes attention in code of its own, off transformers' attention interface, or not at all",
            "take a model of another family, like Llama, Qwen or Mistral",
        )
    return None


def _is_on_attention_interface(kind: str) -> bool:
    """By the source of transformers, as transformers itself finds out; True for code that comes with a model."""
    transformers = importlib.util.find_spec("transformers")
    assert transformers is not None
    assert transformers.origin is not None
    name = kind.replace("-", "_")
    file = Path(transformers.origin).parent / "models" / name / f"modeling_{name}.py"
    return not file.is_file() or "ALL_ATTENTION_FUNCTIONS.get_interface(" in file.read_text(encoding="utf-8")
