"""From credited groups to samples: what is trained on, and how old it is."""

import numpy as np
import pytest

from system.algorithms.grpo import Grpo, GrpoOptions
from system.data.samples import make_samples, require_fresh, staleness
from system.records import ScoredGroup, TrainingSample, TrajectoryGroup
from tests.algorithms.groups import context, scored
from tests.trajectories import single_turn


def samples_of(group: ScoredGroup) -> list[TrainingSample]:
    credit = Grpo(GrpoOptions(deviation="none"), context=context()).credit([group])
    return make_samples(group, credit=credit.groups[0])


def test_a_sample_has_prompt_and_completion_and_its_loss_on_the_latter() -> None:
    first, second = samples_of(scored(1.0, 0.0, texts=["123", "4"]))
    np.testing.assert_array_equal(first.token_ids, [5, 6, 1, 2, 3])
    np.testing.assert_array_equal(first.loss_mask, [False, False, True, True, True])
    np.testing.assert_allclose(first.advantages, [0, 0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(second.advantages, [0, 0, -0.5])
    assert first.min_policy_version == 4
    assert first.group_id == 7


def test_an_invalid_trajectory_makes_no_sample() -> None:
    samples = samples_of(scored(1.0, None, 0.0, texts=["1", "2", "3"]))
    assert [int(sample.token_ids[-1]) for sample in samples] == [1, 3]


def test_staleness_counts_from_the_oldest_token() -> None:
    mixed = scored(1.0, 0.0)
    trajectories = tuple(single_turn([1], index=index, versions=[version]) for index, version in enumerate((3, 5)))
    group = TrajectoryGroup(group_id=7, prompt=mixed.group.prompt, trajectories=trajectories)
    assert staleness([ScoredGroup(group=group, terms=mixed.terms)], policy_version=5) == [2]


def test_a_token_beyond_the_bound_of_staleness_is_named() -> None:
    one_token_late = single_turn([1, 2, 3], index=1, versions=[5, 2], version_starts=[0, 2])
    group = TrajectoryGroup(group_id=7, prompt=scored(1.0).group.prompt, trajectories=(one_token_late,))
    groups = [ScoredGroup(group=group, terms=scored(1.0).terms)]
    require_fresh(groups, policy_version=5, max_staleness=3)
    with pytest.raises(AssertionError, match="group 7, completion 1 has tokens of policy versions 2 to 5"):
        require_fresh(groups, policy_version=5, max_staleness=2)
    with pytest.raises(AssertionError, match="policy version 4 may not be trained on"):
        require_fresh(groups, policy_version=4, max_staleness=3)
