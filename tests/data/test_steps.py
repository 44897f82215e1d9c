"""Where steps end in tokens and where the policy is asked, with character tokens and with longer ones."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from system.data.steps import TrajectorySteps, positions_behind, token_offsets, token_steps, trajectory_steps
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.data.tasks.math import MathTask
from system.interfaces import Task
from system.records import Trajectory
from tests.trajectories import single_turn, two_turns

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


def steps_by_task(trajectory: Trajectory, *, task: Task, tokenizer: PieceTokenizer) -> TrajectorySteps:
    text = trajectory.text
    return trajectory_steps(
        trajectory, cuts=task.cut_steps(text), reasoning_end=task.reasoning_end(text), tokenizer=tokenizer
    )


def steps_of(pieces: list[str], *, task: Task, with_end: bool = True) -> tuple[list[int], list[int]]:
    tokenizer = PieceTokenizer(*pieces)
    token_ids = [*range(len(pieces)), *([END] if with_end else [])]
    trajectory = single_turn(token_ids, text=tokenizer.decode(token_ids))
    steps = steps_by_task(trajectory, task=task, tokenizer=tokenizer)
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


class ByteTokenizer(PieceTokenizer):
    """Token n is the byte n."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(token for token in token_ids if token != END).decode(errors="replace")


def test_a_character_is_written_when_the_last_of_its_bytes_is() -> None:
    text = "né\n\N{SNOWMAN}\n#1"  # é has two bytes, the snowman three
    trajectory = single_turn([*text.encode(), END], text=text)
    assert token_offsets([1, 2, 3, 4, 5], trajectory=trajectory, tokenizer=ByteTokenizer()) == [1, 3, 4, 7, 8]
    steps = steps_by_task(trajectory, task=Gsm8kChainsTask(), tokenizer=ByteTokenizer())
    assert (steps.ends.tolist(), steps.asked.tolist()) == ([4, 11], [0, 4, 8])


def test_a_text_that_its_tokens_do_not_give_ends_with_them() -> None:
    trajectory = single_turn([0], text="a text from elsewhere")
    assert token_offsets([50], trajectory=trajectory, tokenizer=PieceTokenizer("a text")) == [1]


def test_a_turn_ends_a_step_and_what_the_environment_says_is_no_step() -> None:
    # prompt 3 4 | "5" "6" | environment 7 8 9 | "10" end | environment 11
    tokenizer = PieceTokenizer(*[str(number) for number in range(12)])
    trajectory = replace(two_turns(), text="56\n10")
    tokens = trajectory.token_ids.copy()
    tokens[8] = END
    trajectory = replace(trajectory, token_ids=tokens)
    assert token_offsets([1, 2, 3, 4, 5], trajectory=trajectory, tokenizer=tokenizer) == [1, 2, 2, 3, 3]
    steps = steps_by_task(trajectory, task=Gsm8kChainsTask(), tokenizer=tokenizer)
    assert (steps.ends.tolist(), steps.asked.tolist()) == ([2, 4], [0, 2, 3])
    # asked behind the prompt, behind the first turn (before the environment answers) and behind the last word
    assert positions_behind(trajectory, num_sampled=steps.asked).tolist() == [2, 4, 8]


def test_chunks_of_tokens_are_asked_behind_each_and_behind_all() -> None:
    steps = token_steps(7, step_tokens=3)
    assert (steps.ends.tolist(), steps.asked.tolist()) == ([3, 6, 7], [0, 3, 6, 7])
    assert token_steps(6, step_tokens=3).ends.tolist() == [3, 6]
    assert (token_steps(0, step_tokens=3).ends.tolist(), token_steps(0, step_tokens=3).asked.tolist()) == ([], [0])


def test_offsets_look_at_few_prefixes_of_a_long_text() -> None:
    tokenizer = PieceTokenizer(*["ab"] * 3000)
    num_decoded = 0
    decode = tokenizer.decode

    def counting(token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        nonlocal num_decoded
        num_decoded += 1
        return decode(token_ids, skip_special_tokens=skip_special_tokens)

    tokenizer.decode = counting  # type: ignore[method-assign]
    trajectory = single_turn(range(3000), text="ab" * 3000)
    offsets = token_offsets([0, 1, 2, 5999, 6000], trajectory=trajectory, tokenizer=tokenizer)
    assert offsets == [0, 1, 1, 3000, 3000]
    assert num_decoded < 5 * 13
