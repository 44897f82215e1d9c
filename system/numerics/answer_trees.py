"""Answers after every step of a response as one tree: the response once, all continuations as branches of it.

    prompt + step 1 + step 2 + ...            the trunk: one causal sequence
       |         |        |
       prefix    prefix   prefix              the answer prefix after each step, e.g. `</think>`
       |  |      |  |     |  |
      y_0 y_1   y_0 y_1  y_0 y_1              each answer behind it

Naively that is a forward pass for each (step, answer). Here each token of the tree is computed once: a branch sees
the trunk up to its step, its prefix and itself, at the positions that it would have behind them. Called by the scoring
replica; the attention itself is that of `packed_attention`, with a mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from system.numerics.packed_attention import PackedLayout, TreeVectors
from system.records import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerTree:
    """One response with what is asked after each of its steps.

    Raises ValueError for an empty trunk or answer, no answer, or step ends that do not ascend within the trunk.
    """

    token_ids: IntArray  # int32[L], of the whole trajectory
    prefix_lengths: IntArray  # int32[S+1], tokens of the trunk that the branches of step t see; ascending, 1 .. L
    answer_prefix: IntArray  # int32[A_0], may be empty
    answers: tuple[IntArray, ...]  # K+1 of int32[n_i], n_i >= 1

    def __post_init__(self) -> None:
        lengths = self.prefix_lengths
        if len(lengths) == 0 or lengths[0] < 1 or lengths[-1] > len(self.token_ids) or (np.diff(lengths) < 0).any():
            raise ValueError(
                f"prefix_lengths must ascend within 1 and L = {len(self.token_ids)}, got {lengths.tolist()}"
            )
        if not self.answers or min(len(answer) for answer in self.answers) == 0:
            raise ValueError(f"each of the answers needs a token, got {[len(answer) for answer in self.answers]}")

    @property
    def num_tokens(self) -> int:
        """Tokens of the forward pass. An answer's last token is only predicted, so it is not among them."""
        branch = len(self.answer_prefix) + sum(len(answer) - 1 for answer in self.answers)
        return int(self.prefix_lengths[-1]) + len(self.prefix_lengths) * branch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedTrees:
    """Trees end to end, ready for PolicyModel.forward; M answer tokens are predicted."""

    token_ids: torch.Tensor  # int64[N]
    position_ids: torch.Tensor  # int64[N]
    layout: PackedLayout
    predictor_index: torch.Tensor  # int64[M], packed position that predicts the answer token
    target_ids: torch.Tensor  # int64[M]

    @classmethod
    def build(cls, trees: Sequence[AnswerTree], *, device: torch.device) -> "PackedTrees":
        flat = [_flatten(tree) for tree in trees]
        starts = np.concatenate(([0], np.cumsum([len(each.token_ids) for each in flat])))

        def to_device(arrays: list[NDArray[np.int64]]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(arrays)).to(device)

        return cls(
            token_ids=to_device([each.token_ids for each in flat]),
            position_ids=to_device([each.position_ids for each in flat]),
            layout=PackedLayout.build(
                torch.from_numpy(starts),
                device=device,
                trees=TreeVectors(
                    limits=torch.from_numpy(np.concatenate([each.trunk_limits for each in flat])),
                    steps=torch.from_numpy(np.concatenate([each.steps for each in flat])),
                    answers=torch.from_numpy(np.concatenate([each.answers for each in flat])),
                ),
                max_position=max(int(each.position_ids.max()) for each in flat),
            ),
            predictor_index=to_device(
                [each.predictor_index + start for each, start in zip(flat, starts[:-1], strict=True)]
            ),
            target_ids=to_device([each.target_ids for each in flat]),
        )


def split_answers(logprobs: FloatArray, *, trees: Sequence[AnswerTree]) -> list[FloatArray]:
    """The M log-probabilities of `PackedTrees` by tree: float32[S+1, K+1, A] each, 0 behind an answer's end.

    A is the number of tokens of the tree's longest answer. Raises ValueError when M is another number.
    """
    tables, start = [], 0
    for tree in trees:
        lengths = [len(answer) for answer in tree.answers]
        is_token = np.arange(max(lengths)) < np.array(lengths)[:, None]
        table = np.zeros((len(tree.prefix_lengths), *is_token.shape), dtype=np.float32)
        size = len(tree.prefix_lengths) * sum(lengths)
        if start + size > len(logprobs):
            raise ValueError(f"{len(logprobs)} log-probabilities are too few for the trees")
        table[np.broadcast_to(is_token, table.shape)] = logprobs[start : start + size]
        tables.append(table)
        start += size
    if start != len(logprobs):
        raise ValueError(f"{len(logprobs)} log-probabilities for trees with {start} answer tokens")
    return tables


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _FlatTree:
    """A tree's tokens in order: the trunk, then step by step the prefix and the answers. int64 arrays."""

    token_ids: NDArray[np.int64]  # [N]
    position_ids: NDArray[np.int64]  # [N]
    trunk_limits: NDArray[np.int64]  # [N], how many trunk tokens a token sees
    steps: NDArray[np.int64]  # [N], branch of the token; -1 in the trunk
    answers: NDArray[np.int64]  # [N], answer of the token in its branch; -1 in trunk and prefix
    predictor_index: NDArray[np.int64]  # [M]
    target_ids: NDArray[np.int64]  # [M]


def _flatten(tree: AnswerTree) -> _FlatTree:
    num_trunk = int(tree.prefix_lengths[-1])  # nothing looks at what follows the last step
    trunk = np.arange(num_trunk)
    token_ids, position_ids = [tree.token_ids[:num_trunk]], [trunk]
    limits, steps, answers = [trunk + 1], [np.full(num_trunk, -1)], [np.full(num_trunk, -1)]
    predictors: list[NDArray[np.int64]] = []
    num_tokens = num_trunk

    def append(ids: IntArray, *, step: int, answer: int, position: int, seen: int) -> None:
        nonlocal num_tokens
        size = len(ids)
        token_ids.append(ids)
        position_ids.append(position + np.arange(size))
        limits.append(np.full(size, seen))
        steps.append(np.full(size, step))
        answers.append(np.full(size, answer))
        num_tokens += size

    for step, seen in enumerate(tree.prefix_lengths.tolist()):
        append(tree.answer_prefix, step=step, answer=-1, position=seen, seen=seen)
        root = num_tokens - 1 if len(tree.answer_prefix) else seen - 1
        for number, answer in enumerate(tree.answers):
            predictors.append(np.concatenate(([root], num_tokens + np.arange(len(answer) - 1))))
            append(answer[:-1], step=step, answer=number, position=seen + len(tree.answer_prefix), seen=seen)
    return _FlatTree(
        token_ids=np.concatenate(token_ids).astype(np.int64),
        position_ids=np.concatenate(position_ids).astype(np.int64),
        trunk_limits=np.concatenate(limits).astype(np.int64),
        steps=np.concatenate(steps).astype(np.int64),
        answers=np.concatenate(answers).astype(np.int64),
        predictor_index=np.concatenate(predictors).astype(np.int64),
        target_ids=np.tile(np.concatenate(tree.answers), len(tree.prefix_lengths)).astype(np.int64),
    )
