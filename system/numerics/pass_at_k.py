"""Accuracy estimates with their uncertainty, in float64. Called by evaluation and benchmarks."""

import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

NORMAL_QUANTILE_95 = 1.959963984540054


class MeanWithInterval(TypedDict):
    """A mean over problems and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def pass_at_k(num_samples: int, *, num_correct: int, k: int) -> float:
    """Unbiased estimate that at least one of k samples is right, 0-1.

        1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1}^{n} (1 - k / i)

    with n = num_samples and c = num_correct. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, eq. 1.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct {num_correct} is not within 0 and num_samples {num_samples}")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k {k} is not within 1 and num_samples {num_samples}")
    if num_samples - num_correct < k:  # k samples cannot all be wrong; the product would pass through zero
        return 1.0
    factors = 1.0 - k / np.arange(num_samples - num_correct + 1, num_samples + 1, dtype=np.float64)
    return 1.0 - float(np.prod(factors))


def mean_with_interval(values: Sequence[float], *, num_resamples: int = 2000, seed: int = 0) -> MeanWithInterval:
    """Mean of one value per problem, with its 95 % interval over problems.

    Values that are all 0 or 1 get the Wilson interval; others (a problem's mean over several samples, which are
    not independent) the percentile bootstrap over problems, seeded. NaN throughout when there are no values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values must be one number per problem, got shape {array.shape}")
    if array.size == 0:
        return MeanWithInterval(mean=math.nan, low=math.nan, high=math.nan)
    if np.isin(array, (0.0, 1.0)).all():
        low, high = wilson_interval(int(array.sum()), num_trials=array.size)
    else:
        low, high = _bootstrap_interval(array, num_resamples=num_resamples, seed=seed)
    return MeanWithInterval(mean=float(array.mean()), low=low, high=high)


def wilson_interval(num_successes: int, *, num_trials: int) -> tuple[float, float]:
    """95 % score interval of a proportion, 0-1.

        (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n),  z = 1.96

    Unlike p -+ z sqrt(p(1-p)/n) it does not collapse at p = 0 or 1. Raises ValueError unless
    0 <= num_successes <= num_trials and num_trials >= 1. Source: Wilson (1927), JASA 22, 209-212.
    """
    if num_trials < 1 or not 0 <= num_successes <= num_trials:
        raise ValueError(f"{num_successes} successes of {num_trials} trials is no proportion")
    p = num_successes / num_trials
    z_squared = NORMAL_QUANTILE_95**2
    centre = p + z_squared / (2 * num_trials)
    spread = NORMAL_QUANTILE_95 * math.sqrt(p * (1 - p) / num_trials + z_squared / (4 * num_trials**2))
    scale = 1 + z_squared / num_trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _bootstrap_interval(values: NDArray[np.float64], *, num_resamples: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(values.size, size=values.size)].mean() for _ in range(num_resamples)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
