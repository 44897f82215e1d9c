"""Is the policy more certain of its right answers than of its wrong ones? Called by `credence certainty-report`.

Sign convention throughout: positive, and an area above 0.5, means that right answers are the more certain ones.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from system.numerics.pass_at_k import MeanWithInterval, mean_with_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class CertaintySummary:
    """Of one set of completions, in the unit of the certainty (nats)."""

    num_completions: int
    mean: float
    median: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CertaintyComparison:
    right: CertaintySummary
    wrong: CertaintySummary
    u_statistic: float  # pairs (right, wrong) in which the right one is more certain, ties half
    p_value: float  # two-sided; 0 where it is below the smallest float
    auc: float  # 0-1
    rank_biserial: float  # -1 .. 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WithinProblemComparison:
    num_problems: int  # with both right and wrong completions
    num_problems_left_out: int  # with only right or only wrong ones: they say nothing here
    auc: MeanWithInterval  # over problems; NaN when there is no problem
    rank_biserial: float


def compare_certainty(right: ArrayLike, *, wrong: ArrayLike) -> CertaintyComparison:
    """Mann-Whitney test of the certainties of right against those of wrong completions, all problems together.

        U   = #{(r, w): c_r > c_w} + #{(r, w): c_r = c_w} / 2
        AUC = U / (n_right n_wrong) = P(c_r > c_w) + P(c_r = c_w) / 2
        rank-biserial correlation = 2 AUC - 1

    The p-value is exact for small samples without ties, else from the normal approximation with ties and continuity
    corrected. It takes completions as independent; those of one problem are not, so with several completions for
    each problem it is too small: then report `compare_within_problems` beside it.

    Args:
        right, wrong: float[n], one certainty for each completion; finite, not empty.

    Raises:
        ValueError: other shapes, an empty set, or a value that is not finite.
    """
    right_values, wrong_values = _checked(right, name="right"), _checked(wrong, name="wrong")
    result = stats.mannwhitneyu(right_values, wrong_values, alternative="two-sided")
    auc = float(result.statistic) / (len(right_values) * len(wrong_values))
    return CertaintyComparison(
        right=_summary(right_values),
        wrong=_summary(wrong_values),
        u_statistic=float(result.statistic),
        p_value=float(result.pvalue),
        auc=auc,
        rank_biserial=2.0 * auc - 1.0,
    )


def compare_within_problems(
    certainty: ArrayLike, *, right: ArrayLike, problem_ids: Sequence[str]
) -> WithinProblemComparison:
    """The comparison inside each problem, averaged over problems.

        AUC = (1 / |Q|) sum_{q in Q} U_q / (n_q,right n_q,wrong),   Q: problems with right and wrong completions

    Easy problems have both more certain and more right completions, which alone gives `compare_certainty` an AUC
    above 0.5. Here certainties only meet those of the same problem, as in best-of-N selection, and every problem
    counts once. The 95 % interval is over problems: it contains 0.5 where certainty is not shown to help.

    Args:
        certainty: float[n], finite, not empty.
        right: bool[n].
        problem_ids: n names.

    Raises:
        ValueError: shapes differ, or a value that is not finite.
    """
    values = _checked(certainty, name="certainty")
    is_right = np.asarray(right, dtype=np.bool_)
    if is_right.shape != values.shape or len(problem_ids) != len(values):
        raise ValueError(
            f"certainty, right and problem_ids must be [n] alike, got {values.shape}, {is_right.shape} and "
            f"[{len(problem_ids)}]"
        )
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, problem_id in enumerate(problem_ids):
        members[problem_id].append(index)
    aucs = []
    for indices in members.values():
        of_problem, right_of_problem = values[indices], is_right[indices]
        if right_of_problem.any() and not right_of_problem.all():
            differences = of_problem[right_of_problem][:, None] - of_problem[~right_of_problem]
            aucs.append(float((differences > 0).mean() + 0.5 * (differences == 0).mean()))
    auc = mean_with_interval(aucs)
    return WithinProblemComparison(
        num_problems=len(aucs),
        num_problems_left_out=len(members) - len(aucs),
        auc=auc,
        rank_biserial=2.0 * auc["mean"] - 1.0,
    )


def _checked(values: ArrayLike, *, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must be one certainty for each completion, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: there is nothing to compare")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite")
    return array


def _summary(values: NDArray[np.float64]) -> CertaintySummary:
    return CertaintySummary(num_completions=len(values), mean=float(values.mean()), median=float(np.median(values)))
