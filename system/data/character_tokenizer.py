"""The embedded policy's tokenizer: one character of an arithmetic chain is one token. Built by the warm start.

It is a Qwen2 tokenizer whose vocabulary is single characters and which has no merges. A tokenizer of another class is
no choice: transformers loads Qwen2's own class for every model of that architecture, whatever the folder says, and its
pre-tokenizer would replace ours and lose line breaks.
"""

from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|end|>"
UNKNOWN_TOKEN = "<|unknown|>"
CHARACTERS = "0123456789+-*/().=:#\n"
_BYTE_LEVEL_NEWLINE = "Ċ"  # how byte-level vocabularies write a line break


def build_character_tokenizer(*, max_length: int) -> PreTrainedTokenizerBase:
    """A fast tokenizer that adds nothing at the beginning or the end; characters it does not know are dropped."""
    pieces = CHARACTERS.replace("\n", _BYTE_LEVEL_NEWLINE)
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate((PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN, *pieces))},
        merges=[],
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def character_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Token id of each character."""
    return {character: tokenizer.encode(character, add_special_tokens=False)[0] for character in CHARACTERS}
