"""Group-relative advantages: one scalar for each completion of a group (GRPO and its kin).

The caller writes the scalar over the completion's tokens; nothing here knows tokens or models.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from system.records import BoolArray, FloatArray

Baseline = Literal["mean", "leave_one_out"]
RewardArray = NDArray[np.float32] | NDArray[np.float64]


def group_advantages(
    rewards: RewardArray,
    *,
    valid: BoolArray,
    baseline: Baseline = "mean",
    normalise_std: bool = True,
    epsilon: float = 1e-6,
) -> FloatArray:
    """How much better each completion did than its group.

    Over the n valid members only, in float64:

        mean:           A_i = (r_i - mean_j r_j) / (std_j r_j + epsilon)
        leave_one_out:  A_i = (r_i - mean_{j != i} r_j) / (std_j r_j + epsilon)

    The mean's denominator is n. `std` is the sample standard deviation (denominator n - 1), as in the
    published GRPO implementations (verl, TRL: `torch.std`); with the population form, advantages of a
    group of 8 would be 7 % larger. With `normalise_std` off the division is left out (Dr. GRPO).

    A group with fewer than two valid members, or whose valid members all have the same reward, says
    nothing about which completion was better: its advantages are all zero. Invalid members get 0.

    Args:
        rewards: `[G]`, any float dtype; entries of invalid members are ignored and may be NaN.
        valid: bool `[G]`.
        epsilon: keeps the division finite, in units of the reward; >= 0.

    Returns:
        float32 `[G]`.

    Raises:
        ValueError: shapes differ or are not one-dimensional, `valid` is not bool, `epsilon` is negative,
            the baseline is unknown, or a valid reward is not finite.

    Sources: Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1.2 (mean and std); Liu et al.,
    Understanding R1-Zero-Like Training, arXiv 2503.20783 (no std); Ahmadian et al., Back to Basics,
    arXiv 2402.14740 (leave-one-out).
    """
    rewards_64 = checked_group(rewards, valid=valid)
    if epsilon < 0:
        raise ValueError(f"epsilon must be >= 0, got {epsilon}")
    if baseline not in ("mean", "leave_one_out"):
        raise ValueError(f"baseline must be 'mean' or 'leave_one_out', got {baseline!r}")

    advantages = np.zeros(rewards_64.shape, dtype=np.float32)
    members = rewards_64[valid]
    num_members = members.size
    # The spread is compared, not the std: rounding in the mean gives equal rewards a std of 1e-17,
    # which an epsilon of 0 would blow up to advantages of order 1.
    if num_members < 2 or members.max() == members.min():
        return advantages

    centred = members - members.mean()
    if baseline == "leave_one_out":
        # r_i - (n mean - r_i) / (n - 1) = (r_i - mean) n / (n - 1)
        centred = centred * (num_members / (num_members - 1))
    if normalise_std:
        centred = centred / (members.std(ddof=1) + epsilon)
    advantages[valid] = centred.astype(np.float32)
    return advantages


def checked_group(rewards: RewardArray, *, valid: BoolArray) -> NDArray[np.float64]:
    """The rewards of a group `[G]` in float64, after checking shapes, dtypes and that valid ones are finite.

    Raises:
        ValueError: as in `group_advantages`.
    """
    if rewards.ndim != 1 or valid.shape != rewards.shape:
        raise ValueError(f"rewards and valid must both be [G], got {rewards.shape} and {valid.shape}")
    if valid.dtype != np.bool_:
        raise ValueError(f"valid must be bool, got {valid.dtype}")
    if not np.issubdtype(rewards.dtype, np.floating):
        raise ValueError(f"rewards must be floating point, got {rewards.dtype}")
    rewards_64 = rewards.astype(np.float64)
    if not np.isfinite(rewards_64[valid]).all():
        raise ValueError(f"valid rewards must be finite, got {rewards_64[valid].tolist()}")
    return rewards_64


def reward_deviation(rewards: Sequence[RewardArray]) -> float:
    """Sample standard deviation (denominator n - 1) of all rewards of a batch, in float64; 0 below two of them.

    Args:
        rewards: float[n_g] for each group, valid members only.

    Source: TRL's GRPOTrainer, `scale_rewards="batch"`; Liu et al., arXiv 2508.08221 (deviation of the batch).
    """
    members = np.concatenate([np.zeros(0), *(each.astype(np.float64) for each in rewards)])
    return float(members.std(ddof=1)) if members.size > 1 else 0.0


def whitening(values: NDArray[np.floating], *, counts: NDArray[np.integer]) -> tuple[float, float]:
    """Mean and reciprocal deviation of values that occur `counts` times each, in float64.

        mean = sum_k n_k v_k / N,   scale = 1 / sqrt(sum_k n_k (v_k - mean)^2 / (N - 1) + 1e-8),   N = sum_k n_k

    as verl's `masked_whiten` over the tokens of a batch. (0, 0) when fewer than two tokens are left: nothing can be
    compared. The whitened value is (v - mean) * scale.

    Args:
        values: float[n]; those with count 0 are ignored and may be NaN.
        counts: int[n], >= 0.

    Raises:
        ValueError: shapes differ, a negative count, or a counted value that is not finite.
    """
    if values.ndim != 1 or counts.shape != values.shape or (counts < 0).any():
        raise ValueError(f"values and counts must both be [n], counts >= 0, got {values.shape} and {counts.shape}")
    counted = counts > 0
    members, weights = values[counted].astype(np.float64), counts[counted].astype(np.float64)
    if not np.isfinite(members).all():
        raise ValueError("counted values must be finite")
    total = weights.sum()
    if total < 2:
        return 0.0, 0.0
    mean = float((weights * members).sum() / total)
    variance = float((weights * (members - mean) ** 2).sum() / (total - 1))
    return mean, 1.0 / math.sqrt(variance + 1e-8)
