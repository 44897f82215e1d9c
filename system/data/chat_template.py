"""What a text problem looks like to the model: the tokenizer's chat template, or plain text where it has none."""

import jinja2

from system.errors import ConfigError
from system.interfaces import Tokenizer


def plain_prompt(text: str, *, tokenizer: Tokenizer) -> str:
    """The text behind the tokenizer's begin-of-sequence token, where it has one."""
    return f"{getattr(tokenizer, 'bos_token', None) or ''}{text}"


def chat_prompt(question: str, *, instruction: str, tokenizer: Tokenizer) -> str:
    """The instruction as system message and the question as user message, ready for the assistant's turn.

    The instruction stands before the question where the template refuses or leaves out system messages. Raises
    ConfigError for a template that cannot say both.
    """
    if not getattr(tokenizer, "chat_template", None):
        return plain_prompt(f"{instruction}\n\nProblem: {question}\n\nSolution:", tokenizer=tokenizer)
    user = {"role": "user", "content": question}
    attempts = (
        [{"role": "system", "content": instruction}, user],
        [{"role": "user", "content": f"{instruction}\n\n{question}"}],
    )
    reason = "it leaves out the instruction"
    for messages in attempts:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except jinja2.TemplateError as error:
            reason = " ".join(str(error).split())
            continue
        if instruction.strip() in text:
            return text
    raise ConfigError(
        "model.path",
        given=getattr(tokenizer, "name_or_path", "a tokenizer"),
        expected=f"a chat template that takes an instruction and a question ({reason})",
        fix="a chat template of the model's family, or none: the prompt is plain text then",
    )
