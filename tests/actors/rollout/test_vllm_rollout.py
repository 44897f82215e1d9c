"""Rollout workers on real vLLM engines, weights through the real sender.

Three engines are shared by the module: `tied` (embedding and LM head are one matrix), `untied`, and
`stale_head` (the tied model without the LM-head repair). Tests that need certain weights publish them first.
"""

import asyncio
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from actors.rollout.worker import NO_POLICY_VERSION, RolloutWorker
from learner.weight_sender import WeightSender
from system.config.schema import RolloutConfig
from system.errors import CredenceError, EngineFailedError, WeightSyncError
from system.records import Prompt, ReceiverStatus, Sampling, Trajectory, TrajectoryGroup, WeightGroupSpec
from tests.tiny_policies import (
    END,
    NUM_TOKENIZER_ENTRIES,
    changed,
    make_policy,
    named_weights,
    reference_logprobs,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

CONFIG = RolloutConfig(
    max_prompt_tokens=64, max_completion_tokens=448, max_sequences=64, kv_cache_gib=0.25, enforce_eager=True
)
SAMPLING = Sampling(temperature=0.7, top_p=1.0, top_k=0, max_tokens=32, num_completions=4, seed=11)
PROMPT = Prompt(prompt_id="p0", token_ids=np.arange(40, 60, dtype=np.int32), text="", reference_answer="", task="test")
OTHER_PROMPT = dataclasses.replace(PROMPT, prompt_id="p1", token_ids=np.arange(100, 133, dtype=np.int32))
Result = TypeVar("Result")
CANARY = [*range(40, 100)]


class Rollout:
    """The workers, the sender and one event loop for a module of tests."""

    def __init__(self, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self.folders = {
            "tied": make_policy(folder / "tied", is_tied=True),
            "untied": make_policy(folder / "untied", is_tied=False),
        }
        self.folders["stale_head"] = self.folders["tied"]
        self.workers: dict[str, RolloutWorker] = {}
        self.processes: dict[str, set[psutil.Process]] = {}
        self.sender = WeightSender(device=torch.device("cpu"))
        self.members: tuple[str, ...] = ()

    def run(self, call: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(call)

    def worker(self, name: str) -> RolloutWorker:
        """The worker `name`, started when first asked for."""
        if name not in self.workers:
            worker = new_worker(self.folders[name], name=name)
            if name == "stale_head":
                worker._settings = dataclasses.replace(
                    worker._settings, worker_extension="tests.actors.rollout.stale_head_extension.StaleHeadExtension"
                )
            before = children()
            self.run(worker.start())
            self.processes[name] = children() - before
            self.workers[name] = worker
        return self.workers[name]

    def base_model(self, name: str) -> Qwen2ForCausalLM:
        return Qwen2ForCausalLM.from_pretrained(self.folders[name], dtype=torch.float32).eval()

    async def publish(self, model: Qwen2ForCausalLM, *names: str, policy_version: int) -> list[ReceiverStatus]:
        """Broadcast `model` to the workers `names`, in a new weight group when the members changed."""
        workers = [self.workers[name] for name in names]
        if self.members != names:
            spec = spec_for(len(workers))
            joins = [worker.join_weight_group(spec, first_rank=1 + rank) for rank, worker in enumerate(workers)]
            await asyncio.gather(asyncio.to_thread(self.sender.open, spec), *joins)
            self.members = names
        manifest = self.sender.describe(named_weights(model), policy_version=policy_version)
        sending = asyncio.create_task(asyncio.to_thread(self.sender.send, named_weights(model), manifest))
        statuses = await asyncio.gather(*(worker.receive_weights(manifest) for worker in workers))
        await sending
        assert all(status.digest == manifest.digest for status in statuses)
        return statuses

    def close(self) -> None:
        for worker in self.workers.values():
            self.run(worker.shutdown())
        self.sender.close()
        self.runner.close()


def new_worker(folder: Path, *, name: str) -> RolloutWorker:
    return RolloutWorker(
        config=CONFIG, model_path=str(folder), revision=None, trust_remote_code=False, run_seed=0, name=name
    )


def children() -> set[psutil.Process]:
    return {
        process for process in psutil.Process().children(recursive=True) if "tracker" not in " ".join(process.cmdline())
    }


def spec_for(num_receivers: int, *, timeout_seconds: float = 60.0) -> WeightGroupSpec:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return WeightGroupSpec(
        group_name=f"weights-{port}",
        host="127.0.0.1",
        port=port,
        world_size=1 + num_receivers,
        backend="gloo",
        timeout_seconds=timeout_seconds,
        bucket_bytes=1 << 16,
    )


@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollout]:
    shared = Rollout(tmp_path_factory.mktemp("policies"))
    yield shared
    shared.close()


def bits(group: TrajectoryGroup) -> list[tuple[bytes, bytes]]:
    return [(one.token_ids.tobytes(), one.logprobs.tobytes()) for one in group.trajectories]


def largest_error(model: Qwen2ForCausalLM, trajectory: Trajectory, *, temperature: float) -> float:
    expected = reference_logprobs(model, trajectory.token_ids.tolist(), temperature=temperature)
    is_sampled = trajectory.is_sampled[1:]
    return float(np.abs(expected[is_sampled] - trajectory.logprobs[1:][is_sampled]).max())


def assert_agrees(rollout: Rollout, name: str, model: Qwen2ForCausalLM) -> None:
    """Draws and canary of worker `name` have the log-probabilities that transformers gives `model`."""
    worker = rollout.worker(name)
    group = rollout.run(worker.generate(PROMPT, group_id=3, sampling=SAMPLING))
    for trajectory in group.trajectories:
        assert largest_error(model, trajectory, temperature=0.7) < 1e-4
    canary = rollout.run(worker.canary_logprobs(CANARY))
    assert canary.dtype == np.float32
    assert canary.shape == (len(CANARY) - 1,)
    assert np.abs(canary - reference_logprobs(model, CANARY)).max() < 1e-4


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_logprobs_are_those_of_transformers_before_and_after_updates(rollout: Rollout, name: str) -> None:
    model = rollout.base_model(name)
    worker = rollout.worker(name)
    assert worker.policy_version == NO_POLICY_VERSION
    assert_agrees(rollout, name, model)
    for policy_version in (1, 2):
        before = reference_logprobs(model, CANARY)
        changed(model, seed=policy_version)
        assert np.abs(before - reference_logprobs(model, CANARY)).max() > 0.1
        (status,) = rollout.run(rollout.publish(model, name, policy_version=policy_version))
        assert (status.receiver, status.policy_version) == (name, policy_version)
        assert worker.policy_version == policy_version
        assert_agrees(rollout, name, model)


def test_a_group_is_complete_and_describes_itself(rollout: Rollout) -> None:
    worker = rollout.worker("tied")
    rollout.run(rollout.publish(rollout.base_model("tied"), "tied", policy_version=7))
    tokenizer = AutoTokenizer.from_pretrained(rollout.folders["tied"])
    tokens_before, seconds_before = worker.num_generated_tokens, worker.busy_seconds
    sampling = dataclasses.replace(SAMPLING, max_tokens=448, num_completions=8, temperature=1.0)
    group = rollout.run(worker.generate(PROMPT, group_id=5, sampling=sampling))
    assert (group.group_id, group.prompt) == (5, PROMPT)
    assert [one.index for one in group.trajectories] == list(range(8))
    for one in group.trajectories:
        assert one.token_ids.dtype == np.int32
        assert one.logprobs.dtype == np.float32
        assert one.token_ids[: one.num_prompt_tokens].tolist() == PROMPT.token_ids.tolist()
        assert one.is_sampled[one.num_prompt_tokens :].all()
        assert set(one.sampled_policy_versions.tolist()) == {7}
        if one.finish_reason == "stop":
            assert one.token_ids[-1] == END
        else:
            assert one.num_sampled == 448
        assert END not in one.sampled_token_ids[:-1]
        known = [token for token in one.sampled_token_ids.tolist() if token < NUM_TOKENIZER_ENTRIES]
        assert len(known) < one.num_sampled  # a token that the tokenizer does not know is no error
        assert one.text == tokenizer.decode(known, skip_special_tokens=True)
    assert {one.finish_reason for one in group.trajectories} == {"stop", "length"}
    assert len(set(bits(group))) == 8
    assert worker.num_in_flight == 0
    assert worker.num_generated_tokens - tokens_before == sum(one.num_sampled for one in group.trajectories)
    assert worker.busy_seconds > seconds_before


def test_greedy_completions_are_the_most_likely_tokens(rollout: Rollout) -> None:
    worker = rollout.worker("tied")
    model = rollout.base_model("tied")
    rollout.run(rollout.publish(model, "tied", policy_version=8))
    sampling = dataclasses.replace(SAMPLING, temperature=0.0, num_completions=2, max_tokens=16)
    first, second = rollout.run(worker.generate(PROMPT, group_id=0, sampling=sampling)).trajectories
    assert (first.index, second.index) == (0, 1)
    assert first.token_ids.tolist() == second.token_ids.tolist()
    token_ids = PROMPT.token_ids.tolist()
    for token in first.sampled_token_ids.tolist():
        with torch.no_grad():
            assert int(model(torch.tensor([token_ids])).logits[0, -1].argmax()) == token
        token_ids.append(token)
    assert largest_error(model, first, temperature=1.0) < 1e-4


def test_draws_depend_on_neither_the_batch_nor_the_worker(rollout: Rollout) -> None:
    workers = [rollout.worker("tied"), rollout.worker("stale_head")]
    rollout.run(rollout.publish(rollout.base_model("tied"), "tied", "stale_head", policy_version=9))

    async def alone(worker: RolloutWorker) -> list[tuple[bytes, bytes]]:
        return bits(await worker.generate(PROMPT, group_id=21, sampling=SAMPLING))

    async def in_a_crowd(worker: RolloutWorker) -> list[tuple[bytes, bytes]]:
        crowd = [worker.generate(OTHER_PROMPT, group_id=group, sampling=SAMPLING) for group in range(20)]
        return bits((await asyncio.gather(*crowd, worker.generate(PROMPT, group_id=21, sampling=SAMPLING)))[-1])

    draws = rollout.run(alone(workers[0]))
    assert rollout.run(in_a_crowd(workers[0])) == draws
    assert rollout.run(alone(workers[1])) == draws
    assert rollout.run(in_a_crowd(workers[1])) == draws
    other_group = rollout.run(workers[0].generate(PROMPT, group_id=22, sampling=SAMPLING))
    other_seed = rollout.run(workers[0].generate(PROMPT, group_id=21, sampling=dataclasses.replace(SAMPLING, seed=12)))
    assert len({*draws, *bits(other_group), *bits(other_seed)}) == 12


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


def test_a_cancelled_group_leaves_the_engine(rollout: Rollout) -> None:
    worker = rollout.worker("tied")
    sampling = dataclasses.replace(SAMPLING, max_tokens=448, num_completions=16)

    async def cancel() -> None:
        drawing = asyncio.create_task(worker.generate(PROMPT, group_id=0, sampling=sampling))
        await asyncio.sleep(0.2)
        assert worker.num_in_flight == 1
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing

    rollout.run(cancel())
    assert worker.num_in_flight == 0
    assert worker._running_engine()._llm.get_num_unfinished_requests() == 0
    assert len(rollout.run(worker.generate(PROMPT, group_id=0, sampling=SAMPLING)).trajectories) == 4


def test_prompts_and_lengths_beyond_the_configuration_are_refused(rollout: Rollout) -> None:
    worker = rollout.worker("tied")
    long_prompt = dataclasses.replace(PROMPT, token_ids=np.zeros(65, dtype=np.int32))
    with pytest.raises(ValueError, match=r"prompt p0 has 65 tokens, expected 1 to rollout\.max_prompt_tokens = 64"):
        rollout.run(worker.generate(long_prompt, group_id=0, sampling=SAMPLING))
    with pytest.raises(ValueError, match=r"sampling\.max_tokens is 449"):
        rollout.run(worker.generate(PROMPT, group_id=0, sampling=dataclasses.replace(SAMPLING, max_tokens=449)))
    with pytest.raises(ValueError, match="canary"):
        rollout.run(worker.canary_logprobs(range(512)))
    assert worker.num_in_flight == 0


def test_joining_a_group_whose_sender_is_not_there_ends_with_its_name(rollout: Rollout) -> None:
    worker = rollout.worker("tied")
    spec = spec_for(1, timeout_seconds=2.0)
    with pytest.raises(CredenceError, match=f"the weight sender at 127.0.0.1:{spec.port}"):
        rollout.run(worker.join_weight_group(spec, first_rank=1))
    rollout.members = ()
    rollout.run(rollout.publish(rollout.base_model("tied"), "tied", policy_version=50))  # the engine lives on


def test_an_engine_whose_update_broke_off_never_serves_again(rollout: Rollout) -> None:
    worker = rollout.worker("untied")
    rollout.sender.close()
    rollout.members = ()
    spec = spec_for(1, timeout_seconds=2.0)
    manifest = rollout.sender.describe(named_weights(rollout.base_model("untied")), policy_version=60)

    async def update_without_sending() -> None:
        await asyncio.gather(asyncio.to_thread(rollout.sender.open, spec), worker.join_weight_group(spec, first_rank=1))
        drawing = asyncio.create_task(
            worker.generate(PROMPT, group_id=0, sampling=dataclasses.replace(SAMPLING, max_tokens=448))
        )
        await asyncio.sleep(0.1)
        with pytest.raises(WeightSyncError, match=r"the weight sender .* did not finish"):
            await worker.receive_weights(manifest)
        with pytest.raises(EngineFailedError, match="weight update broke off"):
            await drawing

    rollout.run(update_without_sending())
    with pytest.raises(EngineFailedError, match="weight update broke off"):
        rollout.run(worker.generate(PROMPT, group_id=0, sampling=SAMPLING))


def test_the_death_of_an_engine_reaches_pending_calls(rollout: Rollout) -> None:
    worker = rollout.worker("stale_head")

    async def kill_while_drawing() -> float:
        drawing = asyncio.create_task(
            worker.generate(PROMPT, group_id=0, sampling=dataclasses.replace(SAMPLING, max_tokens=448))
        )
        await asyncio.sleep(0.1)
        for process in rollout.processes["stale_head"]:
            os.kill(process.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(EngineFailedError, match="failed"):
            await drawing
        with pytest.raises(EngineFailedError):
            await worker.canary_logprobs(CANARY)
        return time.monotonic() - start

    assert rollout.run(kill_while_drawing()) < 10


def test_shutdown_leaves_no_process(rollout: Rollout) -> None:
    worker = rollout.worker("tied")
    processes = rollout.processes["tied"]
    assert any(process.is_running() for process in processes)
    rollout.run(worker.shutdown())
    psutil.wait_procs(processes, timeout=5)
    assert not [process for process in processes if process.is_running()]
    with pytest.raises(EngineFailedError, match="tied is not running"):
        rollout.run(worker.generate(PROMPT, group_id=0, sampling=SAMPLING))
