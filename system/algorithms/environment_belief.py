"""BARL and Markovian RL where the task says, step by step, what each hypothesis would pay.

In such an environment nobody has to be asked: whether a response would be rewarded at step t under hypothesis i can be
read from the response. The paper's synthetic task (triplets) is one. The other form, where the policy's own answers
are the evidence, is in belief.py. Called where samples are made.

Letters: S steps, M hypotheses. Sources: Zhang et al., Beyond Markovian, arXiv 2505.20561v2, whose published text gives
no discount, network or optimiser for this task.
"""

import numpy as np
from numpy.typing import NDArray

from system.records import BoolArray

Float64Array = NDArray[np.float64]


def discounted_first_payment(pays: BoolArray, *, discount: float) -> Float64Array:
    """Value to go when the first payment at or after a step is the only one.

        Q[t] = discount^(t* - t), t* the first step >= t with pays[t*]; 0 where there is none

    Args:
        pays: bool[S, ...]; steps first.
        discount: 0 < discount <= 1.

    Returns:
        float64 of the same shape, 0 .. 1.

    Raises:
        ValueError: another dtype, no step axis, or a discount out of range.
    """
    _check_pays(pays)
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"discount must be above 0 and at most 1, got {discount}")
    values = np.zeros(pays.shape, dtype=np.float64)
    to_go = np.zeros(pays.shape[1:], dtype=np.float64)
    for step in range(len(pays) - 1, -1, -1):
        to_go = np.where(pays[step], 1.0, discount * to_go)
        values[step] = to_go
    return values


def unpaid_weights(pays: BoolArray, *, beta: float) -> Float64Array:
    """Weight of each hypothesis while no reward has been seen; all are equally credible at first.

        W_i[t] = (1 / M) exp(-beta sum_{t' < t} |r_obs[t'] - pays_i[t']|),   r_obs = 0

    An episode that still runs has paid nothing: a hypothesis that would have paid by now has mispredicted and loses
    weight, which says "try another". Not normalised over i.

    Args:
        pays: bool[S, M]; M >= 1.
        beta: >= 0.

    Returns:
        float64[S, M], 0 .. 1 / M.

    Raises:
        ValueError: other shapes or dtypes, or a negative beta.
    """
    _check_pays(pays)
    if pays.ndim != 2 or pays.shape[1] == 0:
        raise ValueError(f"pays must be bool[S, M] with M >= 1, got {pays.shape}")
    if not beta >= 0:
        raise ValueError(f"beta must be >= 0, got {beta}")
    mispredicted = np.zeros(pays.shape, dtype=np.float64)
    mispredicted[1:] = pays[:-1].cumsum(axis=0)
    return np.exp(-beta * mispredicted) / pays.shape[1]


def environment_values(truth: BoolArray, *, pays: BoolArray, discount: float, beta: float) -> Float64Array:
    """Value of each step of one response.

        Markovian (M = 0):  V[t] = Q_0[t]
        BARL:               V[t] = Q_0[t] / M + sum_i W_i[t] Q_i[t]

    Q_0 is that of the ground truth, which pays once: after its first payment it is 0. The hypotheses' Q_i are those of
    `discounted_first_payment`.

    Args:
        truth: bool[S], whether the ground truth pays at a step.
        pays: bool[S, M], whether hypothesis i would; M = 0 for Markovian RL.

    Returns:
        float64[S], 0 .. 1 + 1 / M.

    Raises:
        ValueError: shapes that do not fit, and what the two functions above raise.
    """
    if truth.ndim != 1 or pays.ndim != 2 or len(pays) != len(truth):
        raise ValueError(f"truth must be bool[S] and pays bool[S, M], got {truth.shape} and {pays.shape}")
    own = discounted_first_payment(truth & is_unpaid(truth), discount=discount)
    num_hypotheses = pays.shape[1]
    if num_hypotheses == 0:
        return own
    believed = unpaid_weights(pays, beta=beta) * discounted_first_payment(pays, discount=discount)
    return own / num_hypotheses + believed.sum(axis=1)


def is_unpaid(truth: BoolArray) -> BoolArray:
    """bool[S]: whether the ground truth had paid nothing before the step; the paying step itself counts."""
    _check_pays(truth)
    paid_before = np.zeros(truth.shape, dtype=np.bool_)
    paid_before[1:] = np.logical_or.accumulate(truth)[:-1]
    return ~paid_before


def _check_pays(pays: BoolArray) -> None:
    if pays.ndim < 1 or pays.dtype != np.bool_:
        raise ValueError(f"payments must be bool with steps first, got {pays.dtype}{pays.shape}")
