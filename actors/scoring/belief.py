"""The BARL belief scorer: what would the policy answer after each step, had it to answer now?

Source: Zhang et al., Beyond Markovian, arXiv 2505.20561v2. It asks and records; what follows from the answers is
computed where samples are made (system/algorithms/belief.py).
"""

import time
from collections.abc import Sequence

import numpy as np

from actors.scoring.model import ScoringModel
from system.algorithms.belief import AnswerReduction, reduce_token_logprobs
from system.data.steps import positions_behind, trajectory_steps
from system.interfaces import Task
from system.numerics.answer_trees import AnswerTree
from system.records import AnswerHypotheses, BeliefTrace, IntArray, TrajectoryGroup


class BeliefScorer:
    """log P[t, i] of every trajectory of a group at temperature 1, with the weights that the replica scores with.

    `model` is shared with other scorers and closed by its owner.
    """

    def __init__(self, model: ScoringModel, *, task: Task, reduction: AnswerReduction) -> None:
        self._model = model
        self._task = task
        self._reduction: AnswerReduction = reduction

    def traces(self, group: TrajectoryGroup, *, hypotheses: AnswerHypotheses) -> tuple[BeliefTrace, ...]:
        """One trace for each trajectory. Raises what the model raises."""
        start = time.perf_counter()
        steps = [
            trajectory_steps(trajectory, task=self._task, tokenizer=self._model.tokenizer)
            for trajectory in group.trajectories
        ]
        prefix, answers = self._answer_tokens(hypotheses)
        trees = [
            AnswerTree(
                token_ids=trajectory.token_ids,
                prefix_lengths=positions_behind(trajectory, num_sampled=each.asked),
                answer_prefix=prefix,
                answers=answers,
            )
            for trajectory, each in zip(group.trajectories, steps, strict=True)
        ]
        built = time.perf_counter()
        tables = self._model.answer_logprobs(trees, temperature=1.0)
        passed = time.perf_counter()
        lengths = np.array([len(answer) for answer in answers])
        return tuple(
            BeliefTrace(
                step_ends=each.ends,
                outcomes=(np.arange(len(answers)) == stated).astype(np.int32),
                answer_logprobs=reduce_token_logprobs(table, lengths=lengths, reduction=self._reduction).astype(
                    np.float32
                ),
                policy_version=self._model.policy_version,
                trees_seconds=(built - start) / len(group.trajectories),
                forward_seconds=(passed - built) / len(group.trajectories),
            )
            for each, stated, table in zip(steps, hypotheses.stated, tables, strict=True)
        )

    def _answer_tokens(self, hypotheses: AnswerHypotheses) -> tuple[IntArray, tuple[IntArray, ...]]:
        """Tokens of the answer prefix and of each answer.

        Each answer is tokenised behind the prefix, because a tokenizer may write the two together otherwise; what it
        then shares with the others is the prefix that is computed once.
        """
        tokenizer = self._model.tokenizer
        written = []
        for answer in hypotheses.answers:
            continuation = self._task.answer_continuation(answer)
            tokens = tokenizer.encode(continuation.prefix + continuation.text, add_special_tokens=False)
            written.append([*tokens, tokenizer.eos_token_id] if continuation.ends_response else tokens)
        wanted = len(tokenizer.encode(self._task.answer_continuation("").prefix, add_special_tokens=False))
        num_shared = min(_num_common(written), wanted, min(len(tokens) for tokens in written) - 1)
        return np.array(written[0][:num_shared], np.int32), tuple(
            np.array(tokens[num_shared:], np.int32) for tokens in written
        )


def _num_common(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    shortest = min(len(sequence) for sequence in sequences)
    for position in range(shortest):
        if len({sequence[position] for sequence in sequences}) > 1:
            return position
    return shortest
