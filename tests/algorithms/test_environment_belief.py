"""Values of the triplets' kind of environment, by hand."""

import math
from typing import Any

import numpy as np
import pytest

from system.algorithms.environment_belief import (
    discounted_first_payment,
    environment_values,
    is_unpaid,
    unpaid_weights,
)

WRONG_DTYPE: Any = np.zeros(3)


def flags(text: str) -> np.ndarray:
    return np.array([character == "x" for character in text], dtype=np.bool_)


def test_value_to_go_counts_from_the_next_payment() -> None:
    values = discounted_first_payment(flags("..x.x."), discount=0.5)
    np.testing.assert_allclose(values, [0.25, 0.5, 1.0, 0.5, 1.0, 0.0])


def test_each_hypothesis_has_its_own_value_to_go() -> None:
    pays = np.stack([flags(".x."), flags("...")], axis=1)
    values = discounted_first_payment(pays, discount=0.9)
    np.testing.assert_allclose(values, [[0.9, 0.0], [1.0, 0.0], [0.0, 0.0]])


def test_hypothesis_loses_weight_behind_each_step_at_which_it_would_have_paid() -> None:
    pays = np.stack([flags(".xx."), flags("....")], axis=1)
    weights = unpaid_weights(pays, beta=1.0)
    np.testing.assert_allclose(weights[:, 0], [0.5, 0.5, 0.5 * math.exp(-1), 0.5 * math.exp(-2)])
    np.testing.assert_allclose(weights[:, 1], 0.5)
    np.testing.assert_allclose(unpaid_weights(pays, beta=0.0), 0.5)


def test_markovian_value_is_that_of_the_truth_which_pays_once() -> None:
    values = environment_values(flags(".x.x"), pays=np.zeros((4, 0), np.bool_), discount=0.5, beta=1.0)
    np.testing.assert_allclose(values, [0.5, 1.0, 0.0, 0.0])


def test_barl_value_by_hand() -> None:
    # truth pays at step 1; hypothesis 1 is the truth, hypothesis 2 pays at step 2
    truth, other = flags(".x."), flags("..x")
    pays = np.stack([truth, other], axis=1)
    values = environment_values(truth, pays=pays, discount=0.5, beta=1.0)
    # Q_0 / 2 = .25 .5 0; weights .5 until step 1, then .5 e^-1 for hypothesis 1; Q_1 = .5 1 0; Q_2 = .25 .5 1
    np.testing.assert_allclose(values, [0.25 + 0.25 + 0.125, 0.5 + 0.5 + 0.25, 0.5])


def test_an_unpaid_episode_credits_the_hypothesis_that_has_not_been_tried() -> None:
    # the same payment later on is worth less when its hypothesis has failed before
    tried, fresh = flags("x..x"), flags("...x")
    value_of_tried = environment_values(flags("...."), pays=tried[:, None], discount=1.0, beta=1.0)[3]
    value_of_fresh = environment_values(flags("...."), pays=fresh[:, None], discount=1.0, beta=1.0)[3]
    np.testing.assert_allclose([value_of_tried, value_of_fresh], [math.exp(-1), 1.0])


def test_unpaid_until_and_with_the_first_payment() -> None:
    assert is_unpaid(flags(".x.x")).tolist() == [True, True, False, False]
    assert is_unpaid(flags("..")).tolist() == [True, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: discounted_first_payment(WRONG_DTYPE, discount=0.5), "payments must be bool"),
        (lambda: discounted_first_payment(flags("x"), discount=0.0), "discount must be above 0"),
        (lambda: unpaid_weights(flags("x"), beta=1.0), r"pays must be bool\[S, M\]"),
        (lambda: unpaid_weights(flags("x")[:, None], beta=-1.0), "beta must be >= 0"),
        (
            lambda: environment_values(flags("x"), pays=np.zeros((2, 1), np.bool_), discount=1.0, beta=1.0),
            r"truth must be bool\[S\]",
        ),
    ],
)
def test_bad_arguments_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
