"""What a group's completions may be heading for: the reference answer and the distinct answers they gave.

Runs beside the verifier in a reward worker; the belief scorer asks the policy for each of them after every step.
"""

import time
from collections import Counter

import numpy as np

from actors.rewards.answers import AnswerScorer
from system.algorithms.belief import choose_candidates
from system.numerics.voting import NO_ANSWER
from system.records import AnswerHypotheses, TrajectoryGroup


class HypothesisFinder:
    """Finds the hypotheses of a group with the equality, and in the sandbox, of `verifier`, which its owner closes.

    `max_candidates` = K at most; 0 leaves the reference alone.
    """

    def __init__(self, verifier: AnswerScorer, *, max_candidates: int) -> None:
        self._verifier = verifier
        self._max_candidates = max_candidates

    def find(self, group: TrajectoryGroup, *, is_right: list[bool]) -> AnswerHypotheses:
        """`is_right` says for each completion whether the verifier found it equal to the reference answer.

        Right answers are the reference, however they are written; the others form classes of equal answers, and each
        class that is taken is written as most of its completions write it.
        """
        start = time.perf_counter()
        answers = self._verifier.read_answers(group)
        classes = [
            NO_ANSWER if right else answer.class_index
            for answer, right in zip(self._verifier.classify(answers), is_right, strict=True)
        ]
        candidates = [classes[index] for index in choose_candidates(classes, max_candidates=self._max_candidates)]
        texts = [
            Counter(
                answer.text for answer, index in zip(answers, classes, strict=True) if index == candidate
            ).most_common(1)[0][0]
            for candidate in candidates
        ]
        number_of = {candidate: number for number, candidate in enumerate(candidates, start=1)}
        stated = [0 if right else number_of.get(index, -1) for index, right in zip(classes, is_right, strict=True)]
        return AnswerHypotheses(
            answers=(group.prompt.reference_answer, *(text for text in texts if text is not None)),
            stated=np.array(stated, dtype=np.int32),
            seconds=time.perf_counter() - start,
        )
