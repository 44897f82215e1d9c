"""The untrained policy of the triplets task: `python -m system.data.triplet_policy FOLDER`.

A random OPT of 105,000 parameters over three tokens, 0, 1 and 2, with an untied head. It draws them about equally
often. Its positions are learned, not rotary: with rotary ones what BARL learns on the trained prompts seldom holds for
the one that is held out (docs/results.md). vLLM's CPU attention knows no heads narrower than 32.
"""

import sys
from pathlib import Path

import torch
from transformers import OPTConfig, OPTForCausalLM, Qwen2Tokenizer

CHARACTERS = "012"
MAX_LENGTH = 64
SEED = 0


def write_policy(folder: Path) -> None:
    """Model and tokenizer; the same files at every call."""
    torch.manual_seed(SEED)
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=len(CHARACTERS),
            hidden_size=64,
            word_embed_proj_dim=64,
            ffn_dim=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_LENGTH,
            dropout=0.0,
            attention_dropout=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            dtype="float32",
        )
    )
    model.save_pretrained(folder)
    tokenizer = Qwen2Tokenizer(
        vocab={character: index for index, character in enumerate(CHARACTERS)},
        merges=[],
        unk_token=None,
        eos_token=None,
        pad_token=None,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_policy(Path(sys.argv[1]))
