"""Whether a model that was just loaded computes in a packed pass what transformers computes for single sequences.

Called by system/numerics/policy_model.py. Two short random sequences are enough: a layer that carries state along the
packed tokens (recurrent, short convolution) leaks from the first into the second, whatever they say.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from system.errors import ConfigError

_LONGEST = 64
# Nats. In bfloat16 two ways to compute the same differ by hundredths; a leak is looked for in equal computations.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
_LEAK_TOLERANCE = 1e-4

PackedLogprobs = Callable[[Sequence[Tensor]], list[Tensor]]  # int64[L] each -> float32[L-1] each, nats


def require_finite_weights(causal_lm: PreTrainedModel, *, model_path: str) -> None:
    """Raises ConfigError with the first tensor that holds NaN or infinity."""
    for name, tensor in causal_lm.state_dict().items():
        bad = tensor.numel() - int(tensor.isfinite().sum())
        if bad:
            raise ConfigError(
                "model.path",
                given=model_path,
                expected=f"finite weights; {name} has {bad:,} of {tensor.numel():,} values that are NaN or infinite",
                fix="export or download the model again, or take an earlier checkpoint",
            )


def probe_sequences(causal_lm: PreTrainedModel) -> list[Tensor]:
    """Three random sequences, int64[L]; the last is as long as the first and has other tokens."""
    positions = getattr(causal_lm.config, "max_position_embeddings", None) or _LONGEST
    longest = min(_LONGEST, positions)
    num_tokens = causal_lm.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    lengths = (longest, max(2, longest * 5 // 8), longest)
    return [torch.randint(num_tokens, (length,), generator=generator).to(causal_lm.device) for length in lengths]


@torch.no_grad()
def plain_logprobs(causal_lm: PreTrainedModel, sequences: Sequence[Tensor]) -> list[Tensor]:
    """What transformers says about each sequence alone: log p(token t | tokens before t), float32[L-1], nats."""
    packed = causal_lm.config._attn_implementation
    causal_lm.set_attn_implementation("sdpa" if causal_lm._supports_sdpa else "eager")
    logprobs = []
    for ids in sequences:
        logits = causal_lm(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        logprobs.append(logits.log_softmax(dim=-1).gather(1, ids[1:, None])[:, 0])
    causal_lm.set_attn_implementation(packed)
    return logprobs


def require_agreement(
    sequences: Sequence[Tensor],
    *,
    plain: Sequence[Tensor],
    packed_logprobs: PackedLogprobs,
    name: str,
    dtype: torch.dtype,
) -> None:
    """Raises ConfigError when packing changes what a model says. `name`: the model's class and path."""
    first, second, other_first = sequences
    try:
        packed = packed_logprobs([first, second])
        beside_other = packed_logprobs([other_first, second])
    except ValueError as error:  # packed attention refuses what it would compute differently
        raise _refusal(name, found=str(error)) from error
    leak = float((packed[1] - beside_other[1]).abs().max())
    if not leak <= _LEAK_TOLERANCE:
        raise _refusal(name, found=f"a sequence changes by {leak:.2g} nats with the one that is packed before it")
    difference = max(float((one - other).abs().max()) for one, other in zip(packed, plain, strict=True))
    if not difference <= _TOLERANCE[dtype]:
        raise _refusal(name, found=f"packed log-probabilities are {difference:.2g} nats off those of transformers")


def _refusal(name: str, *, found: str) -> ConfigError:
    return ConfigError(
        "model.path",
        given=name,
        expected=f"a model whose sequences can be packed into one pass; {found}",
        fix="take a model with attention alone, like Llama, Qwen or Mistral",
    )
