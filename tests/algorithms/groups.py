"""Small scored groups for tests of algorithms: two prompt tokens, then one sampled token a character."""

from collections.abc import Sequence

import numpy as np

from system.algorithms.base import Context
from system.data.tasks.triplets import TripletsTask
from system.records import Prompt, RewardTerm, ScoredGroup, Trajectory, TrajectoryGroup
from tests.trajectories import single_turn

PROMPT = np.array([5, 6], np.int32)


def context(*, normalise_terms: bool = False, **weights: float) -> Context:
    return Context(weights=weights or {"verifier": 1.0}, normalise_terms=normalise_terms, task=TripletsTask())


def trajectory(index: int, *, text: str) -> Trajectory:
    sampled = [int(character) if character.isdigit() else 9 for character in text]
    return single_turn(sampled, prompt=PROMPT.tolist(), index=index, text=text, versions=[4])


def term(value: float | None, *, scorer: str = "verifier") -> RewardTerm:
    """None: invalid."""
    return RewardTerm(
        scorer=scorer,
        value=value if value is not None else 0.0,
        status="ok" if value is not None else "invalid",
        reason="test",
        policy_version=-1,
        seconds=0.0,
    )


def scored(
    *values: float | None,
    texts: Sequence[str] | None = None,
    reference: str = "000",
    group_id: int = 7,
    evidence: tuple[object, ...] | None = None,
    **others: Sequence[float],
) -> ScoredGroup:
    """`values` of the verifier, one for each trajectory; `others` are those of further scorers by name."""
    texts = texts or ["00"] * len(values)
    prompt = Prompt(prompt_id="p", token_ids=PROMPT, text="", reference_answer=reference, task="triplets")
    return ScoredGroup(
        group=TrajectoryGroup(
            group_id=group_id,
            prompt=prompt,
            trajectories=tuple(trajectory(index, text=text) for index, text in enumerate(texts)),
        ),
        terms=tuple(
            (term(value), *(term(column[index], scorer=name) for name, column in others.items()))
            for index, value in enumerate(values)
        ),
        evidence=evidence,
    )
