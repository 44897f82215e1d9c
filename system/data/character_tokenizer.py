"""The embedded policy's tokenizer: one character of an arithmetic chain is one token. Built by the warm start."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|end|>"
UNKNOWN_TOKEN = "<|unknown|>"
CHARACTERS = "0123456789+-*/().=:#\n"


def build_character_tokenizer(*, max_length: int) -> PreTrainedTokenizerFast:
    """A fast tokenizer in the usual file format; no token is added at the beginning or the end."""
    vocabulary = {token: index for index, token in enumerate((PAD_TOKEN, EOS_TOKEN, UNKNOWN_TOKEN, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        unk_token=UNKNOWN_TOKEN,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
