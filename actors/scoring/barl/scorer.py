"""The belief scorer: what would the policy answer after each step, had it to answer now?

It asks and records; what follows from the answers is computed where credit is given (system/algorithms/barl/).
Source: Zhang et al., Beyond Markovian, arXiv 2505.20561v2.
"""

import re
import time
from collections.abc import Sequence

import numpy as np

from actors.scoring.model import ScoringModel
from system.algorithms.barl.belief import reduce_token_logprobs
from system.algorithms.barl.options import ProgressOptions
from system.algorithms.barl.records import AnswerHypotheses, BeliefTrace
from system.data.steps import TrajectorySteps, positions_behind, token_steps, trajectory_steps
from system.data.tasks.boxed import cut_paragraphs
from system.interfaces import Task
from system.numerics.answer_trees import AnswerTree
from system.records import (
    AnswerContinuation,
    FloatArray,
    GroupScores,
    IntArray,
    RewardTerm,
    Trajectory,
    TrajectoryGroup,
)

_LINE_END = re.compile(r"\n+|\Z")


class BeliefScorer:
    """log P[t, i] of every trajectory of a group at temperature 1, with the weights that the replica scores with.

    Its term, for monitoring, is the probability of the reference answer after the last step. `model` is shared with
    other scorers and closed by its owner.
    """

    name = "belief"

    def __init__(self, model: ScoringModel, *, task: Task, options: ProgressOptions) -> None:
        self._model = model
        self._task = task
        self._options = options

    def score(self, group: TrajectoryGroup, evidence: Sequence[object]) -> GroupScores:
        """`evidence` has the group's hypotheses, or traces that are to be taken again. Raises what the model raises."""
        traces = self.traces(group, hypotheses=_hypotheses(evidence))
        terms = tuple((self._term(trace),) for trace in traces)
        return GroupScores(terms=terms, evidence=traces)

    def _term(self, trace: BeliefTrace) -> RewardTerm:
        return RewardTerm(
            scorer=self.name,
            value=float(np.exp(trace.answer_logprobs[-1, 0])),
            status="ok",
            reason="scored",
            policy_version=trace.policy_version,
            seconds=trace.trees_seconds + trace.forward_seconds,
        )

    def traces(self, group: TrajectoryGroup, *, hypotheses: AnswerHypotheses) -> tuple[BeliefTrace, ...]:
        """One trace for each trajectory. Raises what the model raises."""
        start = time.perf_counter()
        steps = [self._steps(trajectory) for trajectory in group.trajectories]
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
                hypotheses=hypotheses,
                stated=int(stated),
                step_ends=each.ends,
                answer_logprobs=self._reduced(table, lengths=lengths),
                policy_version=self._model.policy_version,
                trees_seconds=(built - start) / len(group.trajectories),
                forward_seconds=(passed - built) / len(group.trajectories),
            )
            for each, stated, table in zip(steps, hypotheses.stated, tables, strict=True)
        )

    def _reduced(self, table: FloatArray, *, lengths: IntArray) -> FloatArray:
        return reduce_token_logprobs(table, lengths=lengths, reduction=self._options.reduction).astype(np.float32)

    def _steps(self, trajectory: Trajectory) -> TrajectorySteps:
        if self._options.steps == "tokens":
            return token_steps(trajectory.num_sampled, step_tokens=self._options.step_tokens)
        text = trajectory.text
        if self._options.steps == "task":
            cuts = self._task.cut_steps(text)
        elif self._options.steps == "paragraph":
            cuts = cut_paragraphs(text)
        else:
            cuts = [line.end() for line in _LINE_END.finditer(text)]
        return trajectory_steps(
            trajectory, cuts=cuts, reasoning_end=self._task.reasoning_end(text), tokenizer=self._model.tokenizer
        )

    def _answer_tokens(self, hypotheses: AnswerHypotheses) -> tuple[IntArray, tuple[IntArray, ...]]:
        """Tokens of the answer prefix and of each answer.

        Each answer is tokenised behind the prefix, because a tokenizer may write the two together otherwise; what it
        then shares with the others is the prefix that is computed once.
        """
        tokenizer = self._model.tokenizer
        written = []
        for answer in hypotheses.answers:
            continuation = self._continuation(answer)
            tokens = tokenizer.encode(continuation.prefix + continuation.text, add_special_tokens=False)
            written.append([*tokens, tokenizer.eos_token_id] if continuation.ends_response else tokens)
        wanted = len(tokenizer.encode(self._continuation("").prefix, add_special_tokens=False))
        num_shared = min(_num_common(written), wanted, min(len(tokens) for tokens in written) - 1)
        return np.array(written[0][:num_shared], np.int32), tuple(
            np.array(tokens[num_shared:], np.int32) for tokens in written
        )

    def _continuation(self, answer: str) -> AnswerContinuation:
        if self._options.probe is None:
            return self._task.answer_continuation(answer)
        return AnswerContinuation(prefix=self._options.probe, text=f"{{{answer}}}.", ends_response=False)


def _hypotheses(evidence: Sequence[object]) -> AnswerHypotheses:
    first = evidence[0]
    hypotheses = first.hypotheses if isinstance(first, BeliefTrace) else first
    assert isinstance(hypotheses, AnswerHypotheses), "the rule of the same algorithm found them"
    return hypotheses


def _num_common(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with."""
    shortest = min(len(sequence) for sequence in sequences)
    for position in range(shortest):
        if len({sequence[position] for sequence in sequences}) > 1:
            return position
    return shortest
