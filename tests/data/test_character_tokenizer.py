"""One character is one token, also after saving and loading through AutoTokenizer."""

from pathlib import Path

from transformers import AutoTokenizer, Qwen2Config

from system.data.character_tokenizer import CHARACTERS, build_character_tokenizer
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask


def test_every_chain_survives_the_round_trip(tmp_path: Path) -> None:
    build_character_tokenizer(max_length=512).save_pretrained(tmp_path)
    # With the model's own config beside it AutoTokenizer chooses the class by architecture.
    Qwen2Config().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for problem in Gsm8kChainsTask().load("test")[:200]:
        text = f"{problem.question}:{problem.solution}"
        token_ids = tokenizer.encode(text, add_special_tokens=True)
        assert len(token_ids) == len(text)
        assert tokenizer.unk_token_id not in token_ids
        assert tokenizer.decode(token_ids) == text
        assert tokenizer.decode([*token_ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_special_tokens_are_apart_from_the_characters() -> None:
    tokenizer = build_character_tokenizer(max_length=512)
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    assert len(special) == 3
    assert len(tokenizer) == len(CHARACTERS) + 3
    assert special.isdisjoint(tokenizer.encode(CHARACTERS))
    assert tokenizer.encode("1 x") == tokenizer.encode("1")
