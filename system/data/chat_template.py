"""What a text problem looks like to the model: the tokenizer's chat template, or plain text where it has none."""

from system.interfaces import Tokenizer


def plain_prompt(text: str, *, tokenizer: Tokenizer) -> str:
    """The text behind the tokenizer's begin-of-sequence token, where it has one."""
    return f"{getattr(tokenizer, 'bos_token', None) or ''}{text}"


def chat_prompt(question: str, *, instruction: str, tokenizer: Tokenizer) -> str:
    """The instruction as system message and the question as user message, ready for the assistant's turn."""
    if not getattr(tokenizer, "chat_template", None):
        return plain_prompt(f"{instruction}\n\nProblem: {question}\n\nSolution:", tokenizer=tokenizer)
    messages = [{"role": "system", "content": instruction}, {"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
