"""Where steps end in tokens and where the policy is asked, with character tokens and with longer ones."""

from collections.abc import Sequence

import pytest

from system.data.steps import token_offsets, trajectory_steps
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.data.tasks.math import MathTask
from system.interfaces import Task
from tests.trajectories import single_turn

END = -1


class PieceTokenizer:
    """Token n is the n-th piece of a text; the end token has no text."""

    eos_token_id = END

    def __init__(self, *pieces: str) -> None:
        self._pieces = pieces

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(self._pieces[token] for token in token_ids if token != END)

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool = True, add_generation_prompt: bool = False
    ) -> str:
        raise NotImplementedError


def steps_of(pieces: list[str], *, task: Task, with_end: bool = True) -> tuple[list[int], list[int]]:
    tokenizer = PieceTokenizer(*pieces)
    token_ids = [*range(len(pieces)), *([END] if with_end else [])]
    trajectory = single_turn(token_ids, text=tokenizer.decode(token_ids))
    steps = trajectory_steps(trajectory, task=task, tokenizer=tokenizer)
    return steps.ends.tolist(), steps.asked.tolist()


@pytest.mark.parametrize(
    ("text", "ends", "asked"),
    [
        # the answer line and the end token belong to the last step, which is asked before that line
        ("1+1=2\n2+2=4\n#4", [6, 15], [0, 6, 12]),
        ("1+1=2\n#2", [9], [0, 6]),
        ("1+1=2\n2+2=", [6, 11], [0, 6, 10]),  # no answer: asked behind all that was written
        ("#2", [3], [0, 0]),  # nothing but the answer
        ("", [1], [0, 0]),  # the end token alone
    ],
)
def test_lines_of_chains_are_steps(text: str, ends: list[int], asked: list[int]) -> None:
    assert steps_of(list(text), task=Gsm8kChainsTask()) == (ends, asked)


def test_completion_without_tokens_has_no_step_and_is_asked_once() -> None:
    assert steps_of([], task=Gsm8kChainsTask(), with_end=False) == ([], [0])


def test_step_that_ends_within_a_token_ends_behind_it_and_two_in_one_token_are_joined() -> None:
    pieces = ["1+1", "=2\n2", "+2=4\n3+3=6\n4", "+4=8\n", "#8"]
    # line ends at characters 6, 12, 18 and 24; tokens end at 3, 7, 19, 24 and 26; the end token is the sixth
    assert steps_of(pieces, task=Gsm8kChainsTask()) == ([2, 3, 6], [0, 2, 3, 4])


def test_written_solutions_are_asked_before_their_box() -> None:
    first, second = "a" * 50 + "\n\n", "b" * 50 + "\n\n"
    pieces = [first, second, "So it is ", "\\boxed{4}", "."]
    assert steps_of(pieces, task=MathTask()) == ([1, 2, 6], [0, 1, 2, 3])


def test_thought_ends_at_its_mark() -> None:
    pieces = ["a" * 50 + "\n\n", "b" * 50, "</think>", "\n\n\\boxed{4}"]
    assert steps_of(pieces, task=MathTask()) == ([1, 5], [0, 1, 2])


def test_offsets_look_at_few_prefixes_of_a_long_text() -> None:
    tokenizer = PieceTokenizer(*["ab"] * 3000)
    num_decoded = 0
    decode = tokenizer.decode

    def counting(token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        nonlocal num_decoded
        num_decoded += 1
        return decode(token_ids, skip_special_tokens=skip_special_tokens)

    tokenizer.decode = counting  # type: ignore[method-assign]
    assert token_offsets([0, 1, 2, 5999, 6000], token_ids=range(3000), tokenizer=tokenizer) == [0, 1, 1, 3000, 3000]
    assert num_decoded < 5 * 13
