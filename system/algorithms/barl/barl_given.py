"""BARL over given hypotheses, where the task says at which step each would pay, as in the paper's synthetic task.

In such an environment nobody has to be asked: whether a response would be rewarded at step t under hypothesis i can be
read from the response. The other form, where the policy's own answers are the evidence, is in barl.py.

Letters: S steps, M hypotheses. Source: Zhang et al., Beyond Markovian, arXiv 2505.20561v2, whose published text gives
no discount, network or optimiser for this task.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from system.algorithms.base import Context
from system.algorithms.markovian import (
    Float64Array,
    Markovian,
    MarkovianOptions,
    check_payments,
    discounted_first_payment,
    require_verdict_alone,
)
from system.errors import ConfigError
from system.fields import key
from system.records import BoolArray, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class BarlGivenOptions(MarkovianOptions):
    hypotheses: tuple[str, ...] = key("What may be right, e.g. ['000', '111', '222']; quoted, they are texts.")
    beta: float = key(
        "How fast a hypothesis that would have paid by now loses its weight; 0: not at all.", 1.0, minimum=0
    )


class BarlGiven(Markovian):
    """V[t] = Q_0[t] / M + sum_i W_i[t] Q_i[t], less the group's mean at step t. All steps are in the loss."""

    Options = BarlGivenOptions

    def __init__(self, options: BarlGivenOptions, *, context: Context) -> None:
        super().__init__(options, context=context)
        self._hypotheses = options.hypotheses
        self._beta, self._discount = options.beta, options.discount

    @classmethod
    def check(cls, options: Any, *, weights: Mapping[str, float], normalise_terms: bool, task_name: str) -> None:
        require_verdict_alone(weights)
        if not options.hypotheses or "" in options.hypotheses:
            raise ConfigError(
                "algorithm.options.hypotheses",
                given=list(options.hypotheses),
                expected="at least one, none of them empty",
                fix="e.g. ['000','111','222']",
            )

    def step_values(self, trajectory: Trajectory, *, truth: BoolArray) -> Float64Array:
        pays = np.stack([self.payments(trajectory, answer=each) for each in self._hypotheses], axis=1)
        own = super().step_values(trajectory, truth=truth)
        return given_values(own, pays=pays, discount=self._discount, beta=self._beta)

    def trained_steps(self, truth: BoolArray) -> BoolArray:
        return np.ones_like(truth)


def given_values(own: Float64Array, *, pays: BoolArray, discount: float, beta: float) -> Float64Array:
    """Value of each step of one response:

        V[t] = Q_0[t] / M + sum_i W_i[t] Q_i[t]

    The ground truth pays once: after its first payment Q_0 is 0. The hypotheses' Q_i are those of
    `discounted_first_payment`.

    Args:
        own: Q_0, float64[S].
        pays: bool[S, M], whether hypothesis i would pay at a step.

    Returns:
        float64[S], 0 .. 1 + 1 / M.

    Raises:
        ValueError: shapes that do not fit, and what the functions used here raise.
    """
    if own.ndim != 1 or pays.ndim != 2 or len(pays) != len(own):
        raise ValueError(f"own must be float[S] and pays bool[S, M], got {own.shape} and {pays.shape}")
    believed = unpaid_weights(pays, beta=beta) * discounted_first_payment(pays, discount=discount)
    values: Float64Array = own / pays.shape[1] + believed.sum(axis=1)
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
    check_payments(pays)
    if pays.ndim != 2 or pays.shape[1] == 0:
        raise ValueError(f"pays must be bool[S, M] with M >= 1, got {pays.shape}")
    if not beta >= 0:
        raise ValueError(f"beta must be >= 0, got {beta}")
    mispredicted = np.zeros(pays.shape, dtype=np.float64)
    mispredicted[1:] = pays[:-1].cumsum(axis=0)
    return np.exp(-beta * mispredicted) / pays.shape[1]


ALGORITHM = BarlGiven
