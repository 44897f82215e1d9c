"""What a group's trajectories may be heading for: the reference answer and the distinct answers they gave.

Runs beside the verifier in a reward worker; the belief scorer asks the policy for each of them after every step.
"""

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from actors.rewards.answers import Answer, AnswerScorer
from system.algorithms.barl.belief import choose_candidates
from system.algorithms.barl.options import ProgressOptions
from system.algorithms.barl.records import AnswerHypotheses
from system.numerics.voting import NO_ANSWER
from system.records import RewardTerm, TrajectoryGroup

MAX_EXACT_CHARACTERS = 20  # a longer boxed text is no hypothesis for the BARL authors


class HypothesisFinder:
    """Finds the hypotheses of a group with the equality, and in the sandbox, of `verifier`, which its owner closes."""

    def __init__(self, verifier: AnswerScorer, *, options: ProgressOptions) -> None:
        self._verifier = verifier
        self._max_candidates = options.max_candidates
        self._is_exact = options.is_exact

    def find(self, group: TrajectoryGroup, *, verdicts: Sequence[RewardTerm]) -> AnswerHypotheses:
        """`verdicts` are the verifier's terms, one for each trajectory."""
        start = time.perf_counter()
        answers = self._verifier.read_answers(group)
        is_right = [verdict.status == "ok" and verdict.value == 1.0 for verdict in verdicts]
        reference = group.prompt.reference_answer
        texts, stated = (
            _exact(answers, is_right=is_right, reference=reference, max_candidates=self._max_candidates)
            if self._is_exact
            else self._merged(answers, is_right=is_right, reference=reference)
        )
        return AnswerHypotheses(
            answers=tuple(texts), stated=np.array(stated, dtype=np.int32), seconds=time.perf_counter() - start
        )

    def _merged(
        self, answers: Sequence[Answer], *, is_right: Sequence[bool], reference: str
    ) -> tuple[list[str], list[int]]:
        """Right answers are the reference, however they are written; the others form classes of equal answers, and each
        class that is taken is written as most of its trajectories write it.
        """
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
        return [reference, *(text for text in texts if text is not None)], stated


def _exact(
    answers: Sequence[Answer], *, is_right: Sequence[bool], reference: str, max_candidates: int
) -> tuple[list[str], list[int]]:
    """Distinct short texts, most frequent first. The most frequent right one stands for the reference, which joins
    when none is right; a second way to write it is a hypothesis of its own.

    Source: the released code of Zhang et al., arXiv 2505.20561.
    """
    short = [answer.text if answer.text and len(answer.text) <= MAX_EXACT_CHARACTERS else None for answer in answers]
    right = Counter(text for text, verdict in zip(short, is_right, strict=True) if text is not None and verdict)
    own = right.most_common(1)[0][0] if right else reference
    others = Counter(text for text in short if text is not None and text != own)
    texts = [own, *(text for text, _ in others.most_common(max_candidates))]
    number_of = {text: number for number, text in enumerate(texts)}
    stated = [number_of.get(text, -1) if text is not None else -1 for text in short]
    return texts, [0 if right and number < 0 else number for number, right in zip(stated, is_right, strict=True)]
