"""Which weights score, worked out by hand for a model of one number."""

import pytest
import torch

from actors.scoring.weights import AveragedWeights, LaggedWeights, NewestWeights, ScoringWeights


def receive(rule: ScoringWeights, version: int, value: float) -> tuple[int, float]:
    """The version and the weight that score after `value` came in as `version`."""
    parameters = {"w": torch.tensor([value])}
    return rule.adopt(parameters, policy_version=version), float(parameters["w"])


def test_online_scores_with_what_came_in() -> None:
    assert receive(NewestWeights(), 3, 0.5) == (3, 0.5)


def test_lagged_scores_with_the_version_k_before_or_the_oldest_known() -> None:
    rule = LaggedWeights(lag_versions=2)
    scored = [receive(rule, version, 10.0 * version) for version in range(5)]
    assert scored == [(0, 0.0), (0, 0.0), (0, 0.0), (1, 10.0), (2, 20.0)]


def test_ema_moves_by_one_minus_decay_and_is_of_the_newest_version() -> None:
    rule = AveragedWeights(decay=0.75)
    scored = [receive(rule, version, value) for version, value in enumerate((1.0, 5.0, 2.0))]
    assert scored == [(0, 1.0), (1, 2.0), (2, 2.0)]  # 0.75 * 1 + 0.25 * 5 = 2; 0.75 * 2 + 0.25 * 2 = 2


def test_a_version_that_comes_in_twice_counts_once() -> None:
    average, lagged = AveragedWeights(decay=0.5), LaggedWeights(lag_versions=1)
    for version, value in ((0, 1.0), (1, 3.0), (1, 3.0)):
        averaged, past = receive(average, version, value), receive(lagged, version, value)
    assert averaged == (1, 2.0)
    assert past == (0, 1.0)


@pytest.mark.parametrize("make", [lambda: LaggedWeights(lag_versions=2), lambda: AveragedWeights(decay=0.5)])
def test_a_restored_rule_goes_on_as_the_one_it_was_copied_from(make: type[ScoringWeights]) -> None:
    first, second = make(), make()
    for version in range(3):
        receive(first, version, float(version))
    second.restore(first.state())
    for version in (3, 4):
        assert receive(second, version, 7.0 * version) == receive(first, version, 7.0 * version)


def test_the_state_of_another_mode_is_refused() -> None:
    average = AveragedWeights(decay=0.5)
    receive(average, 0, 1.0)
    with pytest.raises(ValueError, match="lagged"):
        LaggedWeights(lag_versions=1).restore(average.state())
    with pytest.raises(ValueError, match="newest"):
        NewestWeights().restore(average.state())
    with pytest.raises(ValueError, match="policy_version"):
        AveragedWeights(decay=0.5).restore({})
