"""Weights on real vLLM engines: from the store and by broadcast, in flight, broken off, lost and corrupted."""

import asyncio
import dataclasses
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from actors.rollout.worker import NO_POLICY_VERSION
from system.errors import CredenceError, SnapshotLostError, WeightSyncError
from system.records import TrajectoryGroup
from system.weights.manifest import ReceiverStatus
from system.weights.store import Bytes
from tests.actors.rollout.engines import (
    CANARY,
    PROMPT,
    SAMPLING,
    Rollout,
    assert_agrees,
    spec_for,
)
from tests.tiny_policies import (
    changed,
    reference_logprobs,
)
from tests.weights.memory_store import corrupted

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.mark.parametrize("transfer", ["store", "broadcast"])
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_logprobs_are_those_of_transformers_before_and_after_updates(
    rollout: Rollout, name: str, transfer: str
) -> None:
    model = rollout.base_model(name)
    worker = rollout.worker(name)
    if transfer == "store":
        assert worker.policy_version == NO_POLICY_VERSION
        assert_agrees(rollout, name, model)
    for policy_version in (1, 2):
        before = reference_logprobs(model, CANARY)
        changed(model, seed=policy_version)
        assert np.abs(before - reference_logprobs(model, CANARY)).max() > 0.1
        manifest = rollout.manifest(model, policy_version=policy_version)
        if transfer == "store":
            status = rollout.run(worker.load_weights(manifest, 60.0))
        else:
            (status,) = rollout.run(rollout.broadcast(manifest, name))
        assert (status.receiver, status.policy_version, status.digest) == (name, policy_version, manifest.digest)
        assert status.canary_max_abs_diff is not None
        assert status.canary_max_abs_diff < 1e-4
        assert 0 < status.pause_seconds <= status.seconds
        # vLLM on CPU packs linear layers; the embedding and the norms are there to be compared
        assert 0.2 < status.proved_fraction <= 1.0
        assert worker.policy_version == policy_version
        assert_agrees(rollout, name, model)


def test_tokens_drawn_before_and_after_an_update_in_flight_carry_their_own_version(rollout: Rollout) -> None:
    worker = rollout.worker("tied")
    old, new = rollout.base_model("tied"), rollout.base_model("tied")
    changed(new, seed=5)
    rollout.run(rollout.publish(old, "tied", policy_version=20))
    sampling = dataclasses.replace(SAMPLING, max_tokens=448, num_completions=16)

    async def update_in_flight() -> TrajectoryGroup:
        drawing = asyncio.create_task(worker.generate(PROMPT, group_id=0, sampling=sampling))
        await asyncio.sleep(0.3)
        await rollout.publish(new, "tied", policy_version=21)
        assert worker.num_in_flight == 1
        return await drawing

    mixed = 0
    for one in rollout.run(update_in_flight()).trajectories:
        runs = list(zip(one.policy_versions.starts.tolist(), one.policy_versions.versions.tolist(), strict=True))[1:]
        assert runs[0] == (one.num_prompt_tokens, 20)
        if len(runs) == 1:
            continue
        mixed += 1
        (_, (boundary, version)) = runs
        assert version == 21
        assert one.num_prompt_tokens < boundary < len(one.token_ids)
        by_old, by_new = (
            np.insert(reference_logprobs(model, one.token_ids.tolist(), temperature=0.7), 0, 0.0)
            for model in (old, new)
        )
        expected = np.concatenate([by_old[:boundary], by_new[boundary:]])
        assert np.abs(expected - one.logprobs)[one.is_sampled].max() < 1e-4
        assert np.abs(by_old - by_new)[[boundary - 1, boundary]].max() > 1e-3  # else the boundary proves nothing
    assert mixed > 0


def test_the_canary_finds_a_receiver_without_the_lm_head_repair(rollout: Rollout) -> None:
    for name in ("tied", "stale_head"):
        rollout.worker(name)
    model = rollout.base_model("tied")
    changed(model, seed=6)
    statuses = rollout.run(rollout.publish(model, "tied", "stale_head", policy_version=30))
    assert statuses[0].digest == statuses[1].digest  # every byte arrived: only the canary can tell
    expected = reference_logprobs(model, CANARY)
    differences = {
        name: float(np.abs(rollout.run(rollout.worker(name).canary_logprobs(CANARY)) - expected).max())
        for name in ("tied", "stale_head")
    }
    assert differences["tied"] < 1e-4
    assert differences["stale_head"] > 0.1


def test_a_receiver_that_missed_an_update_shows_its_old_version_and_weights(rollout: Rollout) -> None:
    for name in ("tied", "untied"):
        rollout.worker(name)
    old, new = rollout.base_model("untied"), rollout.base_model("tied")
    rollout.run(rollout.publish(old, "untied", policy_version=40))
    rollout.run(rollout.publish(new, "tied", policy_version=41))
    stale = rollout.worker("untied")
    assert stale.policy_version == 40
    group = rollout.run(stale.generate(PROMPT, group_id=0, sampling=SAMPLING))
    assert {version for one in group.trajectories for version in one.sampled_policy_versions.tolist()} == {40}
    assert np.abs(rollout.run(stale.canary_logprobs(CANARY)) - reference_logprobs(new, CANARY)).max() > 0.1


def test_joining_a_group_whose_sender_is_not_there_ends_with_its_name(rollout: Rollout) -> None:
    worker = rollout.worker("tied")
    spec = spec_for(1, timeout_seconds=2.0)
    with pytest.raises(CredenceError, match=f"the weight sender at 127.0.0.1:{spec.port}"):
        rollout.run(worker.join_weight_group(spec, first_rank=1))
    rollout.run(rollout.publish(rollout.base_model("tied"), "tied", policy_version=50))  # the engine lives on


def test_an_engine_whose_broadcast_broke_off_is_repaired_from_the_store(rollout: Rollout) -> None:
    worker = rollout.worker("untied")
    rollout.run(rollout.publish(rollout.base_model("untied"), "untied", policy_version=59))
    newer = rollout.base_model("untied")
    changed(newer, seed=60)
    broken, manifest = (rollout.manifest(newer, policy_version=version) for version in (60, 61))

    async def break_off_half_way() -> TrajectoryGroup:
        await rollout.open_group(spec_for(1, timeout_seconds=2.0), "untied")
        drawing = asyncio.create_task(
            worker.generate(PROMPT, group_id=0, sampling=dataclasses.replace(SAMPLING, max_tokens=448))
        )
        await asyncio.sleep(0.1)
        receiving = asyncio.create_task(worker.receive_broadcast(broken))
        assert rollout.group is not None
        first = torch.tensor(next(rollout.store.fetch(broken.references)))
        work = rollout.group.broadcast(first)  # one bucket of several, and no more
        assert len(broken.buckets) > 3
        with pytest.raises(WeightSyncError, match=r"the weight sender .* did not finish"):
            await receiving
        assert work.is_completed()
        assert not drawing.done()  # paused: nothing is drawn from half of each
        status = await worker.load_weights(manifest, 60.0)
        assert status.canary_max_abs_diff is not None
        assert status.canary_max_abs_diff < 1e-4
        return await drawing

    group = rollout.run(break_off_half_way())
    rollout.leave_group()
    assert {version for one in group.trajectories for version in one.sampled_policy_versions.tolist()} <= {59, 61}
    assert_agrees(rollout, "untied", newer)


def test_a_snapshot_that_is_lost_or_corrupted_leaves_the_engine_at_work(rollout: Rollout) -> None:
    worker = rollout.worker("untied")
    model = rollout.base_model("untied")
    rollout.run(rollout.publish(model, "untied", policy_version=62))
    newer = rollout.base_model("untied")
    changed(newer, seed=63)
    manifest = rollout.manifest(newer, policy_version=63)
    reference = manifest.references[2]
    assert isinstance(reference, int)
    good = rollout.store.objects.pop(reference)
    with pytest.raises(SnapshotLostError):
        rollout.run(worker.load_weights(manifest, 60.0))
    rollout.store.objects[reference] = corrupted(good, position=100)
    with pytest.raises(WeightSyncError, match="of policy version 63 arrived with other bytes than sent"):
        rollout.run(worker.load_weights(manifest, 60.0))
    assert worker.policy_version == 62
    assert_agrees(rollout, "untied", model)


def test_generation_goes_on_while_a_snapshot_is_fetched(rollout: Rollout) -> None:
    worker = rollout.worker("untied")
    manifest = rollout.manifest(rollout.base_model("untied"), policy_version=70)
    drawn: list[float] = []  # when each group was there
    fetched: list[float] = []  # start and end

    def slow_fetch(references: Sequence[object], *, seconds: float) -> Iterator[Bytes]:
        fetched.append(time.monotonic())
        time.sleep(2.0)
        fetched.append(time.monotonic())
        yield from rollout.store.fetch(references, seconds=seconds)

    async def draw_and_load() -> ReceiverStatus:
        worker._fetch = slow_fetch
        loading = asyncio.create_task(worker.load_weights(manifest, 60.0))
        while not loading.done():
            await worker.generate(PROMPT, group_id=0, sampling=dataclasses.replace(SAMPLING, max_tokens=4))
            drawn.append(time.monotonic())
        return await loading

    status = rollout.run(draw_and_load())
    worker._fetch = rollout.store.fetch
    assert sum(fetched[0] < moment < fetched[1] for moment in drawn) > 3
    assert status.seconds > 2.0
    assert status.pause_seconds < status.seconds - 1.9
