"""A group is the same after it has crossed a process border, and says which policy wrote its oldest token."""

import pickle
from dataclasses import fields

import numpy as np
import pytest

from system.records import IntArray, PolicyVersions, Prompt, Trajectory, TrajectoryGroup


def ids(*values: int) -> IntArray:
    return np.array(values, dtype=np.int32)


def trajectory(num_tokens: int, *, index: int, starts: IntArray, versions: IntArray, num_prompt: int = 1) -> Trajectory:
    rng = np.random.default_rng(num_tokens)
    return Trajectory(
        index=index,
        token_ids=rng.integers(0, 2**31 - 1, num_tokens).astype(np.int32),
        is_sampled=np.arange(num_tokens) >= num_prompt,
        logprobs=rng.normal(size=num_tokens).astype(np.float32),
        policy_versions=PolicyVersions(starts=starts, versions=versions),
        text=f"“{index}” ≤ 3",
        finish_reason="stop" if index % 2 else "length",
    )


PROMPT = Prompt(prompt_id="p", token_ids=ids(1, 2), text="1+1:", reference_answer="2", task="chains")
TRAJECTORIES = (
    trajectory(5, index=0, starts=ids(0), versions=ids(3)),
    trajectory(1, index=1, starts=ids(0), versions=ids(-1)),
    trajectory(900, index=2, starts=ids(0, 1, 700), versions=ids(-1, 3, 4)),
    trajectory(0, index=5, starts=ids(), versions=ids()),
)


@pytest.mark.parametrize("trajectories", [(), TRAJECTORIES[:1], TRAJECTORIES])
def test_a_group_is_the_same_after_pickling(trajectories: tuple[Trajectory, ...]) -> None:
    group = TrajectoryGroup(group_id=7, prompt=PROMPT, trajectories=trajectories)
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(group, protocol=5, buffer_callback=buffers.append)
    again = pickle.loads(data, buffers=buffers)
    for copy in (again, pickle.loads(pickle.dumps(again))):
        assert (copy.group_id, len(copy.trajectories)) == (7, len(trajectories))
        assert copy.prompt.text == PROMPT.text
        np.testing.assert_array_equal(copy.prompt.token_ids, PROMPT.token_ids)
        for one, other in zip(copy.trajectories, trajectories, strict=True):
            for field in fields(Trajectory):
                mine, yours = getattr(one, field.name), getattr(other, field.name)
                if isinstance(yours, np.ndarray):
                    assert mine.dtype == yours.dtype
                    np.testing.assert_array_equal(mine, yours)
                elif not isinstance(yours, PolicyVersions):
                    assert mine == yours
            np.testing.assert_array_equal(one.policy_versions.starts, other.policy_versions.starts)
            np.testing.assert_array_equal(one.policy_versions.versions, other.policy_versions.versions)
    assert len(buffers) <= 6  # the prompt's ids and five arrays, whatever the size of the group


def test_the_oldest_version_is_that_of_a_sampled_token() -> None:
    assert [each.min_policy_version for each in TRAJECTORIES] == [3, -1, 3, -1]
    # the prompt's run is the oldest, and a run without a token counts for nothing
    assert trajectory(9, index=0, starts=ids(0, 3), versions=ids(1, 2), num_prompt=3).min_policy_version == 2
    assert trajectory(9, index=0, starts=ids(0, 3), versions=ids(1, 2), num_prompt=2).min_policy_version == 1
    assert trajectory(9, index=0, starts=ids(0, 4, 4), versions=ids(6, 1, 5)).min_policy_version == 5
    rng = np.random.default_rng(0)
    for num_runs in (1, 2, 5):
        starts = np.concatenate([[0], np.sort(rng.integers(0, 40, num_runs - 1))]).astype(np.int32)
        made = trajectory(
            40, index=0, starts=starts, versions=rng.integers(0, 9, num_runs).astype(np.int32), num_prompt=7
        )
        assert made.min_policy_version == made.sampled_policy_versions.min()
