"""GRPO and its settings on whole groups, by hand."""

import numpy as np
import pytest

from system.algorithms.grpo import Grpo, GrpoOptions
from system.errors import ConfigError
from tests.algorithms.groups import context, scored


def scalars(algorithm: Grpo, *groups: object) -> list[list[float]]:
    """The advantage of each trajectory, which all its sampled tokens have."""
    credit = algorithm.credit(groups)  # type: ignore[arg-type]
    return [[float(values[-1]) for values in group.advantages] for group in credit.groups]


def test_the_advantage_stands_on_sampled_tokens_only() -> None:
    algorithm = Grpo(GrpoOptions(deviation="none"), context=context())
    credit = algorithm.credit([scored(1.0, 0.0, texts=["000", "1"])])
    first, second = credit.groups[0].advantages
    assert first.tolist() == [0.0, 0.0, 0.5, 0.5, 0.5]
    assert second.tolist() == [0.0, 0.0, -0.5]
    assert [mask.tolist() for mask in credit.groups[0].in_loss] == [
        [False, False, True, True, True],
        [False, False, True],
    ]


def test_the_group_divides_by_its_own_deviation() -> None:
    # mean 1/4, sample deviation sqrt(3/4 / 3) = 1/2 (arXiv 2402.03300, 4.1.2)
    np.testing.assert_allclose(
        scalars(Grpo(GrpoOptions(), context=context()), scored(1.0, 0.0, 0.0, 0.0)),
        [[1.5, -0.5, -0.5, -0.5]],
        atol=1e-5,
    )


def test_the_batch_divides_by_the_deviation_of_all_rewards() -> None:
    # rewards 1 0 and 0 0: mean 1/4, sample deviation of the four 1/2 (TRL, scale_rewards="batch")
    advantages = scalars(Grpo(GrpoOptions(deviation="batch"), context=context()), scored(1.0, 0.0), scored(0.0, 0.0))
    np.testing.assert_allclose(advantages, [[1.0, -1.0], [0.0, 0.0]], atol=1e-5)


def test_an_invalid_trajectory_is_in_no_statistic() -> None:
    credit = Grpo(GrpoOptions(deviation="none"), context=context()).credit([scored(1.0, None, 0.0)])
    assert credit.groups[0].valid.tolist() == [True, False, True]
    assert [float(values[-1]) for values in credit.groups[0].advantages] == [0.5, 0.0, -0.5]


def test_a_mixture_is_not_divided_a_second_time() -> None:
    # all wrong: only certainty has spread, normalised -0.7071, 0.7071; its weight has to be seen in the advantages
    group = scored(0.0, 0.0, certainty=[1.0, 3.0])
    for weight in (0.001, 1.0):
        mixed = Grpo(GrpoOptions(), context=context(normalise_terms=True, verifier=1.0, certainty=weight))
        np.testing.assert_allclose(scalars(mixed, group), [[-0.7071068 * weight, 0.7071068 * weight]], rtol=1e-5)


def test_a_price_on_length_is_expressible() -> None:
    # 1 - 0.001 * 200, 0 - 0.001 * 100: 0.8 and -0.1, mean 0.35
    algorithm = Grpo(GrpoOptions(deviation="none"), context=context(verifier=1.0, length=-0.001))
    np.testing.assert_allclose(scalars(algorithm, scored(1.0, 0.0, length=[200.0, 100.0])), [[0.45, -0.45]], atol=1e-6)


def test_groups_without_spread_are_refused_where_that_is_asked_for() -> None:
    dynamic = Grpo(GrpoOptions(drop_without_spread=True), context=context())
    assert dynamic.refusal(scored(1.0, 1.0, None)) == "no_spread"
    assert dynamic.refusal(scored(1.0, 0.0)) is None
    assert dynamic.refusal(scored(None, None)) == "no_valid_reward"
    assert Grpo(GrpoOptions(), context=context()).refusal(scored(1.0, 1.0)) is None


def test_a_second_division_of_a_mixture_is_refused() -> None:
    with pytest.raises(ConfigError, match="algorithm.options.deviation: given 'group', expected batch, none or null"):
        Grpo.check(GrpoOptions(deviation="group"), weights={}, normalise_terms=True, task_name="math")
