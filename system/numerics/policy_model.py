"""A causal LM that reads packed sequences and answers with token statistics instead of logits.

Built by the learner, once for the policy and once for a frozen reference, and by each scoring replica. Any model
works that transformers loads as a causal LM with rotary or absolute position ids and a plain linear LM head.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from system.config.model_checks import check_description
from system.errors import ConfigError
from system.numerics.logprobs import TokenStatistics, token_statistics
from system.numerics.model_agreement import (
    plain_logprobs,
    probe_sequences,
    require_agreement,
    require_finite_weights,
)
from system.numerics.packed_attention import PACKED_ATTENTION, PackedLayout, no_attention_mask, packed_attention

# Settings of transformers configs that change the logits after the LM head, with the value that changes nothing.
_LOGIT_TRANSFORMS = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}
# Dropout that models apply as a function; that of nn.Dropout modules is switched off where they are.
_DROPOUTS = ("attention_dropout", "dropout", "activation_dropout", "layerdrop")


class TokenStatisticsHead(nn.Module):
    """Takes the place of the LM head and keeps its parameter's name, so that checkpoints stay in HF's format.

    It is a module, not a function of the weight, because ZeRO-3 gathers a parameter only around the forward
    and backward of the module that owns it.
    """

    def __init__(self, weight: nn.Parameter, *, num_real_tokens: int | None) -> None:
        super().__init__()
        self.weight = weight  # [V, d]; the embedding's own parameter when the two are tied
        # Self-certainty leaves out the padding rows behind them. A tokenizer may also know more than the matrix has.
        self._num_real_tokens = None if num_real_tokens is None else min(num_real_tokens, len(weight))

    def forward(self, hidden: Tensor, target_ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        # A plain tuple: DeepSpeed rebuilds outputs by their type.
        logprobs, entropy, self_certainty = token_statistics(
            hidden,
            weight=self.weight,
            target_ids=target_ids,
            temperature=temperature,
            num_real_tokens=self._num_real_tokens,
        )
        return logprobs, entropy, self_certainty


class PolicyModel(nn.Module):
    """`causal_lm` holds the parameters under their HF names, prefixed with `causal_lm.`."""

    causal_lm: PreTrainedModel

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        self.causal_lm = causal_lm

    def forward(
        self,
        token_ids: Tensor,
        position_ids: Tensor,
        packed_layout: PackedLayout,
        predictor_index: Tensor,
        target_ids: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Statistics (log-probability, entropy, self-certainty; float32 [M], nats) of M target tokens.

        `token_ids`, `position_ids` int64[N]; `predictor_index` int64[M]: the packed position whose hidden state
        predicts `target_ids[m]`. The LM head runs on those M positions only.
        """
        hidden = self.causal_lm.base_model(
            input_ids=token_ids[None], position_ids=position_ids[None], packed_layout=packed_layout, use_cache=False
        ).last_hidden_state[0]
        statistics: tuple[Tensor, Tensor, Tensor] = self.causal_lm.lm_head(
            hidden.index_select(0, predictor_index), target_ids, temperature
        )
        return statistics


def load_policy_model(
    model_path: str,
    *,
    revision: str | None,
    trust_remote_code: bool,
    dtype: torch.dtype,
    device: torch.device,
    gradient_checkpointing: bool = False,
    num_real_tokens: int | None = None,
) -> PolicyModel:
    """Loads a causal LM with packed attention, without dropout, in training mode.

    `num_real_tokens`: rows of the LM head that are tokens; self-certainty leaves out those behind them.
    Dropout is off because it would make the learner's log-probabilities differ from the engine's at random.
    Raises ConfigError for a model whose logits are not hidden @ weight^T, with weights that are not finite, or that
    computes in a packed pass something else than transformers for single sequences.
    """
    causal_lm = _load_causal_lm(
        model_path, revision=revision, trust_remote_code=trust_remote_code, dtype=dtype, device=device
    )
    require_finite_weights(causal_lm, model_path=model_path)
    head = causal_lm.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None or head is not getattr(causal_lm, "lm_head", None):
        raise ConfigError(
            "model.path",
            given=model_path,
            expected="a causal LM whose `lm_head` is a linear layer without bias",
            fix="choose another model",
        )
    sequences = probe_sequences(causal_lm)
    plain = plain_logprobs(causal_lm, sequences[:2])
    causal_lm.lm_head = TokenStatisticsHead(head.weight, num_real_tokens=num_real_tokens)
    model = PolicyModel(causal_lm)
    require_agreement(
        sequences,
        plain=plain,
        packed_logprobs=partial(_packed_logprobs, model),
        name=f"{type(causal_lm).__name__} in {model_path}",
        dtype=dtype,
    )
    if gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _load_causal_lm(
    model_path: str, *, revision: str | None, trust_remote_code: bool, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """With packed attention, without dropout, in training mode. Raises ConfigError for what its config.json says."""
    # torch prefers cuDNN's attention on Hopper, which plans about a second for each block of a new shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    AttentionMaskInterface.register(PACKED_ATTENTION, no_attention_mask)
    config = AutoConfig.from_pretrained(model_path, revision=revision, trust_remote_code=trust_remote_code)
    check_description(model_path, description=config.to_dict())
    for name, neutral in _LOGIT_TRANSFORMS.items():
        if getattr(config, name, neutral) != neutral:
            raise ConfigError(
                "model.path",
                given=model_path,
                expected=f"a model without {name} (its config says {getattr(config, name)!r})",
                fix="choose a model with a plain linear LM head",
            )
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    disable_progress_bar()
    causal_lm: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_path,
        revision=revision,
        trust_remote_code=trust_remote_code,
        config=config,
        dtype=dtype,
        attn_implementation=PACKED_ATTENTION,
    )
    for module in causal_lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return causal_lm.to(device).train()


@torch.no_grad()
def _packed_logprobs(model: PolicyModel, sequences: Sequence[Tensor]) -> list[Tensor]:
    """log p(token t | tokens before t) of each sequence, float32[L-1], nats, from one pass over all."""
    device = sequences[0].device
    lengths = [len(sequence) for sequence in sequences]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    ids = torch.cat(list(sequences))
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    index = positions.nonzero()[:, 0]
    logprobs, _, _ = model(ids, positions, PackedLayout.build(starts, device=device), index - 1, ids[index], 1.0)
    return list(logprobs.split([length - 1 for length in lengths]))


def persistent_buffers(model: PolicyModel) -> dict[str, Tensor]:
    """What belongs to the model's files besides parameters (a router's correction bias, say), by HF name."""
    names = {name for name, _ in model.causal_lm.named_parameters(remove_duplicate=False)}
    return {name: tensor for name, tensor in model.causal_lm.state_dict().items() if name not in names}


def sequence_statistics(
    model: nn.Module, token_ids: Sequence[int], *, device: torch.device, temperature: float
) -> TokenStatistics:
    """Statistics of tokens 1 .. L-1 of one sequence, without gradient; float32 [L-1]."""
    if len(token_ids) < 2:
        raise ValueError(f"a sequence needs at least 2 tokens to have a log-probability, got {len(token_ids)}")
    ids = torch.tensor(token_ids, dtype=torch.long, device=device)
    positions = torch.arange(len(ids), device=device)
    layout = PackedLayout.build(torch.tensor([0, len(ids)]), device=device)
    with torch.no_grad():
        return TokenStatistics(*model(ids, positions, layout, positions[:-1], ids[1:], temperature))
