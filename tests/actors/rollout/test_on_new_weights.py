"""What becomes of completions in flight when new weights come, on real engines: kept keys, and an end under the old."""

import asyncio
import dataclasses

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from system.records import FloatArray, Trajectory, TrajectoryGroup
from tests.actors.rollout.engines import CONFIG, PROMPT, SAMPLING, Rollout, assert_agrees, largest_error
from tests.tiny_policies import changed, reference_logprobs

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

TEMPERATURE = SAMPLING.temperature


def update_in_flight(
    rollout: Rollout, name: str, new: Qwen2ForCausalLM, *, num_completions: int, version: int
) -> tuple[TrajectoryGroup, TrajectoryGroup]:
    """A group that runs while `version` comes, and one of the same prompt that is asked for right after that."""
    worker = rollout.worker(name)
    sampling = dataclasses.replace(SAMPLING, max_tokens=256, num_completions=num_completions)

    async def generate() -> tuple[TrajectoryGroup, TrajectoryGroup]:
        running = asyncio.create_task(worker.generate(PROMPT, group_id=0, sampling=sampling))
        await asyncio.sleep(0.3)
        await rollout.publish(new, name, policy_version=version)
        later = await worker.generate(PROMPT, group_id=1, sampling=SAMPLING)
        return await running, later

    return rollout.run(generate())


def runs_of(one: Trajectory) -> list[tuple[int, int]]:
    """(first token, policy version) of what was sampled."""
    return list(zip(one.policy_versions.starts.tolist(), one.policy_versions.versions.tolist(), strict=True))[1:]


def with_kept_keys(old: Qwen2ForCausalLM, new: Qwen2ForCausalLM, token_ids: list[int], *, boundary: int) -> FloatArray:
    """float32[L]: log-probabilities when `new` goes on at `boundary` with the keys that `old` left; 0 for token 0.

    The last token before the boundary has none yet: it was drawn, and its keys are the first that `new` computes.
    """
    tokens = torch.tensor([token_ids])
    with torch.no_grad():
        before = old(tokens[:, : boundary - 1], use_cache=True)
        after = new(tokens[:, boundary - 1 :], past_key_values=before.past_key_values)
    logits = torch.cat([before.logits, after.logits], dim=1)[0, :-1] / TEMPERATURE
    logprobs = logits.log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return np.insert(logprobs.numpy(), 0, 0.0)


def test_kept_keys_serve_the_completions_that_run_and_no_others(rollout: Rollout) -> None:
    old, new = rollout.base_model("tied"), rollout.base_model("tied")
    changed(new, seed=5)
    rollout.worker("keep")
    rollout.run(rollout.publish(old, "keep", policy_version=20))
    num_completions = 2 * CONFIG.max_sequences  # half of them wait for a place when the weights come

    group, later = update_in_flight(rollout, "keep", new, num_completions=num_completions, version=21)

    mixed, begun_later, largest_step = 0, 0, 0.0
    for one in group.trajectories:
        token_ids = one.token_ids.tolist()
        runs = runs_of(one)
        if len(runs) == 2:
            (_, (boundary, version)) = runs
            assert version == 21
            expected = with_kept_keys(old, new, token_ids, boundary=boundary)
            assert np.abs(expected - one.logprobs)[one.is_sampled].max() < 1e-4
            by_new = np.insert(reference_logprobs(new, token_ids, temperature=TEMPERATURE), 0, 0.0)
            largest_step = max(largest_step, float(np.abs(by_new - one.logprobs)[boundary:].max()))
            mixed += 1
        elif runs[0][1] == 21:
            assert largest_error(new, one, temperature=TEMPERATURE) < 1e-4  # its prompt's keys are of the new weights
            begun_later += 1
    assert mixed > 0
    assert begun_later > 0
    assert largest_step > 1e-2  # else old keys and new ones could not be told apart
    for one in later.trajectories:
        assert {version for _, version in runs_of(one)} == {21}
        assert largest_error(new, one, temperature=TEMPERATURE) < 1e-4
    assert_agrees(rollout, "keep", new)


def test_completions_that_run_end_under_the_weights_that_they_began_with(rollout: Rollout) -> None:
    old, new = rollout.base_model("tied"), rollout.base_model("tied")
    changed(new, seed=6)
    rollout.worker("finish")
    rollout.run(rollout.publish(old, "finish", policy_version=30))

    group, later = update_in_flight(rollout, "finish", new, num_completions=16, version=31)

    for one in group.trajectories:
        assert [version for _, version in runs_of(one)] == [30]
        assert largest_error(old, one, temperature=TEMPERATURE) < 1e-4
    for one in later.trajectories:
        assert [version for _, version in runs_of(one)] == [31]
        assert largest_error(new, one, temperature=TEMPERATURE) < 1e-4
