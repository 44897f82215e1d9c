"""Trajectories for tests, from what matters in them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from system.records import FinishReason, PolicyVersions, Prompt, Trajectory, TrajectoryGroup
from system.rollouts.rollouter import SampledTokens, TrajectoryBuilder


class LetterTokenizer:
    """Token n is the letter n places behind `a`."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) - ord("a") for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(chr(ord("a") + token) for token in token_ids)

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool = True, add_generation_prompt: bool = False
    ) -> str:
        raise NotImplementedError


def single_turn(
    token_ids: Sequence[int],
    *,
    prompt: Sequence[int] = (1,),
    index: int = 0,
    text: str = "",
    logprobs: Sequence[float] | None = None,
    versions: Sequence[int] = (0,),
    version_starts: Sequence[int] = (0,),
    finish_reason: FinishReason = "stop",
) -> Trajectory:
    """The prompt, then `token_ids` as the policy wrote them."""
    builder = TrajectoryBuilder(np.asarray(prompt, np.int32))
    builder.append_sampled(
        SampledTokens(
            token_ids=[int(token) for token in token_ids],
            logprobs=[0.0] * len(token_ids) if logprobs is None else list(logprobs),
            version_starts=list(version_starts),
            versions=list(versions),
            finish_reason=finish_reason,
        )
    )
    return replace(builder.build(index=index, tokenizer=LetterTokenizer()), text=text)


def two_turns(*, index: int = 0) -> Trajectory:
    """prompt 3 4 | sampled 5 6 | environment 7 8 9 | sampled 10 2, with a trailing word of the environment: 11.

    Written by versions 4, 5 (first turn) and 6 (second turn).
    """
    return Trajectory(
        index=index,
        token_ids=np.array([3, 4, 5, 6, 7, 8, 9, 10, 2, 11], np.int32),
        is_sampled=np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 0], np.bool_),
        logprobs=np.array([0, 0, -0.5, -0.25, 0, 0, 0, -1.0, -0.125, 0], np.float32),
        policy_versions=PolicyVersions(
            starts=np.array([0, 2, 3, 4, 7, 9], np.int32), versions=np.array([-1, 4, 5, -1, 6, -1], np.int32)
        ),
        text="fg\nkc",
        finish_reason="stop",
    )


def group_of(*trajectories: Trajectory, group_id: int = 7, reference_answer: str = "2") -> TrajectoryGroup:
    prompt = Prompt(
        prompt_id=str(group_id),
        token_ids=trajectories[0].token_ids[: trajectories[0].num_prompt_tokens],
        text="1+1:",
        reference_answer=reference_answer,
        task="gsm8k_chains",
    )
    return TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=trajectories)
