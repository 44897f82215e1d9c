"""From the reward terms of a group to one reward for each completion.

Called where scored groups become training samples, just before the advantages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from system.algorithms.advantages import group_advantages
from system.records import BoolArray, FloatArray, RewardTerm, ScoredGroup

# Names of scorers that somebody asks for.
VERIFIER = "verifier"
SELF_CERTAINTY = "self_certainty"


def find_term(scored: ScoredGroup, index: int, *, scorer: str) -> RewardTerm | None:
    """The scorer's term for one trajectory, None when it has none."""
    return next((term for term in scored.terms[index] if term.scorer == scorer), None)


def is_right(scored: ScoredGroup, index: int) -> bool:
    """Whether the verifier found the trajectory right; an invalid verdict counts as not right."""
    verdict = find_term(scored, index, scorer=VERIFIER)
    return verdict is not None and verdict.status == "ok" and verdict.value == 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CombinedRewards:
    values: FloatArray  # float32[G]; 0 where not valid, meaningless there
    valid: BoolArray  # bool[G]; every weighted term of the completion is ok


def combine_rewards(
    terms: Sequence[Sequence[RewardTerm]],
    *,
    weights: Mapping[str, float],
    normalise_terms: bool = False,
    epsilon: float = 1e-6,
) -> CombinedRewards:
    """One reward for each completion of a group, as the weighted sum of its terms:

        R_i = sum_k w_k r_ik

    Terms may live on different scales (a verdict in {0, 1}, a certainty in nats). With `normalise_terms` each is
    normalised within the group first:

        R_i = sum_k w_k (r_ik - mean_j r_jk) / (std_j r_jk + epsilon)

    over the valid members j; std is the sample standard deviation, as in `group_advantages`. A term without spread in
    the group adds nothing, and the others keep their weights: so whoever makes advantages of the sum must not divide
    it by the group's deviation again, which would take all weights out where one term alone has spread. A scorer with
    weight 0 is only monitored: it neither counts nor makes a completion invalid.

    A completion is valid when all its weighted terms are "ok". An invalid one is no zero: it is left out
    of every statistic here and of the group's advantages.

    Args:
        terms: G sequences, each with the same scorers in the same order.
        weights: finite weight by scorer name, of scorers in `terms`; at least one non-zero. Others are monitored.
        epsilon: keeps the division finite; >= 0.

    Raises:
        ValueError: no completion, scorers that differ between completions, a weight of a scorer that is not there, no
            weighted scorer, a weight that is not finite, or an "ok" term that is not finite.
    """
    scorers = _checked_scorers(terms, weights=weights)
    weighted = [column for column, scorer in enumerate(scorers) if weights.get(scorer, 0.0) != 0.0]
    valid = np.array([all(row[column].status == "ok" for column in weighted) for row in terms], dtype=np.bool_)
    total = np.zeros(len(terms), dtype=np.float64)
    for column in weighted:
        term_values = np.array([row[column].value for row in terms], dtype=np.float64)
        if not np.isfinite(term_values[valid]).all():
            raise ValueError(f"scorer {scorers[column]!r} gave an ok term that is not finite: {term_values.tolist()}")
        if normalise_terms:
            term_values = group_advantages(term_values, valid=valid, epsilon=epsilon).astype(np.float64)
        total[valid] += weights[scorers[column]] * term_values[valid]
    return CombinedRewards(values=total.astype(np.float32), valid=valid)


def _checked_scorers(terms: Sequence[Sequence[RewardTerm]], *, weights: Mapping[str, float]) -> list[str]:
    """Names of the scorers, in the order of the terms."""
    if not terms:
        raise ValueError("a group needs at least one completion")
    scorers = [term.scorer for term in terms[0]]
    for row in terms:
        if [term.scorer for term in row] != scorers:
            raise ValueError(f"completions differ in scorers: {scorers} and {[term.scorer for term in row]}")
    if len(set(scorers)) != len(scorers) or not set(weights) <= set(scorers):
        raise ValueError(f"each weight must name one scorer: scorers {scorers}, weights {sorted(weights)}")
    if not all(np.isfinite(weight) for weight in weights.values()):
        raise ValueError(f"weights must be finite, got {dict(weights)}")
    if all(weight == 0.0 for weight in weights.values()):
        raise ValueError(f"at least one scorer needs a weight other than 0, got {dict(weights)}")
    return scorers
