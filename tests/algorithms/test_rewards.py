"""Combining reward terms against hand-computed numbers."""

import math

import numpy as np
import pytest

from system.algorithms.rewards import combine_rewards
from system.records import RewardTerm


def term(scorer: str, value: float, *, is_ok: bool = True) -> RewardTerm:
    return RewardTerm(
        scorer=scorer,
        value=value,
        status="ok" if is_ok else "invalid",
        reason="test" if is_ok else "timeout",
        policy_version=-1,
        seconds=0.0,
    )


def test_a_single_weighted_term_is_multiplied_by_its_weight_and_not_normalised() -> None:
    terms = [[term("verifier", 1.0)], [term("verifier", 0.0)], [term("verifier", 1.0)]]
    combined = combine_rewards(terms, weights={"verifier": 2.0})
    assert combined.values.tolist() == [2.0, 0.0, 2.0]
    assert combined.values.dtype == np.float32
    assert combined.valid.tolist() == [True, True, True]


def test_terms_are_added_as_they_are() -> None:
    # correct - 0.001 * length
    terms = [[term("verifier", 1.0), term("length", 200.0)], [term("verifier", 0.0), term("length", 50.0)]]
    combined = combine_rewards(terms, weights={"verifier": 1.0, "length": -0.001})
    np.testing.assert_allclose(combined.values, [0.8, -0.05], atol=1e-7)


def test_terms_are_normalised_within_the_group_then_added() -> None:
    # verifier 1, 0, 0, 0: normalised 1.5, -0.5, -0.5, -0.5
    # certainty 10, 20, 30, 40: mean 25, std sqrt(500 / 3) = 12.90994; normalised -1.161895, -0.387298, ...
    terms = [
        [term("verifier", verdict), term("certainty", certainty)]
        for verdict, certainty in [(1.0, 10.0), (0.0, 20.0), (0.0, 30.0), (0.0, 40.0)]
    ]
    combined = combine_rewards(terms, weights={"verifier": 1.0, "certainty": 0.5}, normalise_terms=True, epsilon=0.0)
    np.testing.assert_allclose(
        combined.values,
        [1.5 - 0.580948, -0.5 - 0.193649, -0.5 + 0.193649, -0.5 + 0.580948],
        atol=1e-6,
    )


def test_mixing_does_not_depend_on_the_scale_of_a_term() -> None:
    def combined(scale: float) -> np.ndarray:
        terms = [
            [term("verifier", verdict), term("certainty", scale * certainty)]
            for verdict, certainty in [(1.0, 0.2), (0.0, 0.7), (1.0, 0.4)]
        ]
        weights = {"verifier": 1.0, "certainty": 1.0}
        return combine_rewards(terms, weights=weights, normalise_terms=True, epsilon=0.0).values

    np.testing.assert_allclose(combined(1.0), combined(1000.0), atol=1e-5)


def test_a_term_without_spread_adds_nothing() -> None:
    terms = [[term("verifier", 0.0), term("certainty", value)] for value in (1.0, 3.0)]
    weights = {"verifier": 1.0, "certainty": 1.0}
    combined = combine_rewards(terms, weights=weights, normalise_terms=True, epsilon=0.0)
    np.testing.assert_allclose(combined.values, [-math.sqrt(0.5), math.sqrt(0.5)], atol=1e-6)


def test_an_invalid_weighted_term_takes_its_completion_out_of_every_statistic() -> None:
    terms = [
        [term("verifier", 1.0), term("certainty", 10.0)],
        [term("verifier", 0.0, is_ok=False), term("certainty", 1000.0)],
        [term("verifier", 0.0), term("certainty", 20.0)],
    ]
    weights = {"verifier": 1.0, "certainty": 1.0}
    combined = combine_rewards(terms, weights=weights, normalise_terms=True, epsilon=0.0)
    assert combined.valid.tolist() == [True, False, True]
    # two members: normalised values are +-sqrt(1/2) and cancel; 1000 has no influence
    np.testing.assert_allclose(combined.values, [0.0, 0.0, 0.0], atol=1e-6)


def test_a_scorer_with_weight_zero_is_only_monitored() -> None:
    terms = [
        [term("verifier", 1.0), term("certainty", math.nan, is_ok=False)],
        [term("verifier", 0.0), term("certainty", 5.0)],
    ]
    combined = combine_rewards(terms, weights={"verifier": 1.0, "certainty": 0.0})
    assert combined.values.tolist() == [1.0, 0.0]
    assert combined.valid.tolist() == [True, True]


def test_a_group_without_valid_members_combines_to_nothing() -> None:
    terms = [[term("verifier", 0.0, is_ok=False)], [term("verifier", 0.0, is_ok=False)]]
    combined = combine_rewards(terms, weights={"verifier": 1.0})
    assert combined.valid.tolist() == [False, False]
    assert combined.values.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("terms", "weights", "message"),
    [
        ([], {"verifier": 1.0}, "at least one completion"),
        ([[term("verifier", 1.0)], [term("length", 1.0)]], {"verifier": 1.0}, "differ in scorers"),
        ([[term("verifier", 1.0)]], {"length": 1.0}, "weight must name"),
        ([[term("verifier", 1.0)]], {"verifier": 1.0, "length": 1.0}, "weight must name"),
        ([[term("verifier", 1.0), term("verifier", 1.0)]], {"verifier": 1.0}, "weight must name"),
        ([[term("verifier", 1.0)]], {"verifier": 0.0}, "other than 0"),
        ([[term("verifier", 1.0)]], {"verifier": math.inf}, "finite"),
        ([[term("verifier", math.nan)]], {"verifier": 1.0}, "not finite"),
    ],
)
def test_bad_input_is_refused(terms: list[list[RewardTerm]], weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        combine_rewards(terms, weights=weights)
