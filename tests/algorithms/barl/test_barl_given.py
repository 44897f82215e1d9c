"""BARL over given hypotheses, by hand."""

import math

import numpy as np
import pytest

from system.algorithms.barl.barl_given import BarlGiven, BarlGivenOptions, given_values, unpaid_weights
from system.algorithms.markovian import discounted_first_payment, is_unpaid
from system.errors import ConfigError
from tests.algorithms.groups import context, scored


def flags(text: str) -> np.ndarray:
    return np.array([character == "x" for character in text], dtype=np.bool_)


def values_of(truth: np.ndarray, *, pays: np.ndarray, discount: float) -> np.ndarray:
    own = discounted_first_payment(truth & is_unpaid(truth), discount=discount)
    return given_values(own, pays=pays, discount=discount, beta=1.0)


def test_hypothesis_loses_weight_behind_each_step_at_which_it_would_have_paid() -> None:
    pays = np.stack([flags(".xx."), flags("....")], axis=1)
    weights = unpaid_weights(pays, beta=1.0)
    np.testing.assert_allclose(weights[:, 0], [0.5, 0.5, 0.5 * math.exp(-1), 0.5 * math.exp(-2)])
    np.testing.assert_allclose(weights[:, 1], 0.5)
    np.testing.assert_allclose(unpaid_weights(pays, beta=0.0), 0.5)


def test_barl_value_by_hand() -> None:
    # truth pays at step 1; hypothesis 1 is the truth, hypothesis 2 pays at step 2
    truth, other = flags(".x."), flags("..x")
    pays = np.stack([truth, other], axis=1)
    values = values_of(truth, pays=pays, discount=0.5)
    # Q_0 / 2 = .25 .5 0; weights .5 until step 1, then .5 e^-1 for hypothesis 1; Q_1 = .5 1 0; Q_2 = .25 .5 1
    np.testing.assert_allclose(values, [0.25 + 0.25 + 0.125, 0.5 + 0.5 + 0.25, 0.5])


def test_an_unpaid_episode_credits_the_hypothesis_that_has_not_been_tried() -> None:
    # the same payment later on is worth less when its hypothesis has failed before
    tried, fresh = flags("x..x"), flags("...x")
    value_of_tried = values_of(flags("...."), pays=tried[:, None], discount=1.0)[3]
    value_of_fresh = values_of(flags("...."), pays=fresh[:, None], discount=1.0)[3]
    np.testing.assert_allclose([value_of_tried, value_of_fresh], [math.exp(-1), 1.0])


def test_other_hypotheses_are_credited_as_well_and_every_step_is_trained() -> None:
    options = BarlGivenOptions(hypotheses=("000", "111"), discount=1.0, subtract_group_mean=False)
    credit = BarlGiven(options, context=context()).credit([scored(0.0, 0.0, texts=["111", "012"])]).groups[0]
    # the truth 000 never pays; 111 pays at the last step, with weight 1/2
    np.testing.assert_allclose(credit.advantages[0], [0, 0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(credit.advantages[1], np.zeros(5))
    assert all(mask.sum() == 3 for mask in credit.in_loss)


@pytest.mark.parametrize("hypotheses", [(), ("000", "")])
def test_hypotheses_are_asked_for(hypotheses: tuple[str, ...]) -> None:
    options = BarlGivenOptions(hypotheses=hypotheses)
    with pytest.raises(ConfigError, match="algorithm.options.hypotheses: given .*, expected at least one"):
        BarlGiven.check(options, weights={"verifier": 1.0}, normalise_terms=False, task_name="triplets")


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pays must be bool\[S, M\]"):
        unpaid_weights(flags("x"), beta=1.0)
    with pytest.raises(ValueError, match="beta must be >= 0"):
        unpaid_weights(flags("x")[:, None], beta=-1.0)
    with pytest.raises(ValueError, match=r"own must be float\[S\]"):
        given_values(np.zeros(1), pays=np.zeros((2, 1), np.bool_), discount=1.0, beta=1.0)
