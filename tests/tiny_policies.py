"""Random Qwen2 policies small enough for a test, and what transformers says about them."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

END = 1
NUM_TOKENIZER_ENTRIES = 512
NUM_EMBEDDINGS = 576  # as in real models, more than the tokenizer knows


def make_policy(folder: Path, *, is_tied: bool, hidden_size: int = 128) -> Path:
    """Write model and tokenizer. A random policy seldom draws the end token: completions are long."""
    characters = [chr(code) for code in range(33, 33 + NUM_TOKENIZER_ENTRIES - 3)]
    entries = {entry: index for index, entry in enumerate(["<pad>", "<end>", "<unknown>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<unknown>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=NUM_EMBEDDINGS,
            hidden_size=hidden_size,  # 128 are heads of 32: vLLM's CPU attention knows no smaller ones
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=640,
            tie_word_embeddings=is_tied,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=0,
            dtype="float32",
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5)  # the initial weights give almost uniform draws, which would hide errors
    model.save_pretrained(folder)
    return folder


def changed(model: Qwen2ForCausalLM, *, seed: int) -> None:
    """Move every parameter by about a tenth of its scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 * parameter.abs().mean() + 1e-3
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def named_weights(model: Qwen2ForCausalLM) -> dict[str, torch.Tensor]:
    """The state dict without an LM head that is tied to the embedding."""
    is_tied = model.config.tie_word_embeddings
    return {name: tensor for name, tensor in model.state_dict().items() if not (is_tied and name == "lm_head.weight")}


def reference_logprobs(
    model: Qwen2ForCausalLM, token_ids: list[int], *, temperature: float = 1.0
) -> NDArray[np.float32]:
    """float32[L-1]: log softmax(z / temperature) of each token given those before it."""
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0, :-1].float()
    logprobs = (logits / temperature).log_softmax(dim=-1)
    return logprobs.gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0].numpy()
