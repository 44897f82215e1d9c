"""Markovian RL: value to go of the task's payments, by hand."""

from typing import Any

import numpy as np
import pytest

from system.algorithms.base import Context
from system.algorithms.markovian import Markovian, MarkovianOptions, discounted_first_payment, is_unpaid
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.errors import ConfigError
from tests.algorithms.groups import context, scored

WRONG_DTYPE: Any = np.zeros(3)


def flags(text: str) -> np.ndarray:
    return np.array([character == "x" for character in text], dtype=np.bool_)


def test_value_to_go_counts_from_the_next_payment() -> None:
    values = discounted_first_payment(flags("..x.x."), discount=0.5)
    np.testing.assert_allclose(values, [0.25, 0.5, 1.0, 0.5, 1.0, 0.0])


def test_each_column_has_its_own_value_to_go() -> None:
    pays = np.stack([flags(".x."), flags("...")], axis=1)
    values = discounted_first_payment(pays, discount=0.9)
    np.testing.assert_allclose(values, [[0.9, 0.0], [1.0, 0.0], [0.0, 0.0]])


def test_unpaid_until_and_with_the_first_payment() -> None:
    assert is_unpaid(flags(".x.x")).tolist() == [True, True, False, False]
    assert is_unpaid(flags("..")).tolist() == [True, True]


def test_credit_counts_to_the_payment_and_ends_there() -> None:
    algorithm = Markovian(MarkovianOptions(discount=0.5), context=context())
    credit = algorithm.credit([scored(1.0, 1.0, texts=["00011", "01000"])]).groups[0]
    # to go: .25 .5 1 0 0 and .0625 .125 .25 .5 1, less their mean at the same step
    np.testing.assert_allclose(credit.advantages[0], [0, 0, 0.09375, 0.1875, 0.375, -0.25, -0.5])
    np.testing.assert_allclose(credit.advantages[1], [0, 0, -0.09375, -0.1875, -0.375, 0.25, 0.5])
    assert credit.in_loss[0].tolist() == [False, False, True, True, True, False, False]
    assert credit.in_loss[1].tolist() == [False, False, True, True, True, True, True]


def test_a_task_that_pays_at_the_end_only_is_refused() -> None:
    wrong = Context(
        weights={"verifier": 1.0}, normalise_terms=False, task=Gsm8kChainsTask(validation_size=1, max_train_steps=None)
    )
    with pytest.raises(ConfigError, match="task.name: given 'gsm8k_chains', expected a task that says at which step"):
        Markovian(MarkovianOptions(), context=wrong)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"verifier": 0.0}, "given '0 x verifier', expected a weight above 0"),
        ({"verifier": 1.0, "length": 0.5}, "given '0.5 x length', expected weight 0, which only monitors"),
    ],
)
def test_other_rewards_than_the_verdict_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Markovian.check(MarkovianOptions(), weights=weights, normalise_terms=False, task_name="triplets")


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="payments must be bool"):
        discounted_first_payment(WRONG_DTYPE, discount=0.5)
    with pytest.raises(ValueError, match="discount must be above 0"):
        discounted_first_payment(flags("x"), discount=0.0)
