"""The instruction reaches the model whatever its chat template thinks of system messages."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from system.data.chat_template import chat_prompt
from system.errors import ConfigError

ROLES = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
WITHOUT_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ONLY_USERS = "{% for message in messages if message.role == 'user' %}user: {{ message.content }}\n{% endfor %}"


def prompt(template: str) -> str:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"w": 0}, unk_token="w")))
    tokenizer.chat_template = template
    return chat_prompt("1+1?", instruction="Think.", tokenizer=tokenizer)


def test_the_instruction_is_the_system_message_where_there_is_one() -> None:
    assert prompt(ROLES) == "system: Think.\nuser: 1+1?\n"


@pytest.mark.parametrize("template", [WITHOUT_SYSTEM + ROLES, ONLY_USERS], ids=["refuses", "leaves out"])
def test_the_instruction_goes_into_the_users_turn_where_there_is_none(template: str) -> None:
    assert prompt(template) == "user: Think.\n\n1+1?\n"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no roles\nat all') }}", r"\(no roles at all\)"),
        ("{{ messages[0].content[0] }}", r"\(it leaves out the instruction\)"),
        ("{{ nothing.at.all }}", r"\('nothing' is undefined\)"),
    ],
)
def test_a_template_that_cannot_say_the_instruction_ends_in_one_line(template: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        prompt(template)
    assert "\n" not in str(caught.value)
