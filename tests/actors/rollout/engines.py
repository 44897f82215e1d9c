"""Real vLLM engines for the tests of this folder, and snapshots to load into them.

Five engines are shared: `tied` (embedding and LM head are one matrix), `untied`, `stale_head` (the tied model
without the LM-head repair), `keep` and `finish` (the tied model, named by what they do on new weights). Tests that need
certain weights publish them first.
"""

import asyncio
import dataclasses
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from transformers import Qwen2ForCausalLM

from actors.rollout.worker import RolloutWorker
from system.config.schema import OnNewWeights, RolloutConfig
from system.records import Prompt, Sampling, Trajectory, TrajectoryGroup
from system.weights.broadcast import WeightGroup, send_buckets
from system.weights.manifest import ReceiverStatus, WeightGroupSpec, WeightsManifest
from tests.tiny_policies import (
    make_policy,
    named_weights,
    reference_logprobs,
)
from tests.weights.memory_store import MemoryStore

CONFIG = RolloutConfig(
    max_prompt_tokens=64, max_completion_tokens=448, max_sequences=64, kv_cache_gib=0.25, enforce_eager=True
)
SAMPLING = Sampling(temperature=0.7, top_p=1.0, top_k=0, max_tokens=32, num_completions=4, seed=11)
PROMPT = Prompt(prompt_id="p0", token_ids=np.arange(40, 60, dtype=np.int32), text="", reference_answer="", task="test")
OTHER_PROMPT = dataclasses.replace(PROMPT, prompt_id="p1", token_ids=np.arange(100, 133, dtype=np.int32))
Result = TypeVar("Result")
CANARY = [*range(40, 100)]
ON_NEW_WEIGHTS: dict[str, OnNewWeights] = {"keep": "keep", "finish": "finish"}  # by engine; the others recompute


class Rollout:
    """The workers, the sender and one event loop for a module of tests."""

    def __init__(self, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self.folders = {
            "tied": make_policy(folder / "tied", is_tied=True),
            "untied": make_policy(folder / "untied", is_tied=False),
        }
        self.folders |= dict.fromkeys(("stale_head", "keep", "finish"), self.folders["tied"])
        self.workers: dict[str, RolloutWorker] = {}
        self.processes: dict[str, set[psutil.Process]] = {}
        self.store = MemoryStore()
        self.group: WeightGroup | None = None  # the sender's end
        self.members: tuple[str, ...] = ()

    def run(self, call: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(call)

    def worker(self, name: str) -> RolloutWorker:
        """The worker `name`, started when first asked for."""
        if name not in self.workers:
            worker = new_worker(self.folders[name], name=name, store=self.store)
            if name == "stale_head":
                worker._settings = dataclasses.replace(
                    worker._settings, worker_extension="tests.actors.rollout.stale_head_extension.StaleHeadExtension"
                )
            if name in ON_NEW_WEIGHTS:
                worker._settings = dataclasses.replace(worker._settings, on_new_weights=ON_NEW_WEIGHTS[name])
            before = children()
            self.run(worker.start())
            self.processes[name] = children() - before
            self.workers[name] = worker
        return self.workers[name]

    def base_model(self, name: str) -> Qwen2ForCausalLM:
        return Qwen2ForCausalLM.from_pretrained(self.folders[name], dtype=torch.float32).eval()

    def manifest(self, model: Qwen2ForCausalLM, *, policy_version: int) -> WeightsManifest:
        """A snapshot of `model` with its canary."""
        return self.store.publish(
            named_weights(model),
            policy_version=policy_version,
            canary_token_ids=CANARY,
            canary_logprobs=reference_logprobs(model, CANARY),
        )

    async def broadcast(self, manifest: WeightsManifest, *names: str) -> list[ReceiverStatus]:
        """Send to the workers `names`, in a new weight group when the members changed."""
        workers = [self.workers[name] for name in names]
        if self.members != names:
            await self.open_group(spec_for(len(workers)), *names)
        sending = asyncio.create_task(asyncio.to_thread(self.send, manifest))
        statuses = await asyncio.gather(*(worker.receive_broadcast(manifest) for worker in workers))
        await sending
        return statuses

    async def open_group(self, spec: WeightGroupSpec, *names: str) -> None:
        self.leave_group()
        workers = [self.workers[name] for name in names]
        joins = [worker.join_weight_group(spec, first_rank=1 + rank) for rank, worker in enumerate(workers)]
        self.group, *_ = await asyncio.gather(asyncio.to_thread(WeightGroup, spec, rank=0), *joins)
        self.members = names

    def leave_group(self) -> None:
        if self.group is not None:
            self.group.close()
        self.group, self.members = None, ()

    def send(self, manifest: WeightsManifest) -> None:
        assert self.group is not None
        buffers = (torch.tensor(each) for each in self.store.fetch(manifest.references))
        send_buckets(self.group, buffers, manifest=manifest, device=torch.device("cpu"))

    async def publish(self, model: Qwen2ForCausalLM, *names: str, policy_version: int) -> list[ReceiverStatus]:
        """Bring the workers `names` to `model`, each from the store."""
        manifest = self.manifest(model, policy_version=policy_version)
        return await asyncio.gather(*(self.workers[name].load_weights(manifest, 60.0) for name in names))

    def close(self) -> None:
        for worker in self.workers.values():
            self.run(worker.shutdown())
        self.leave_group()
        self.runner.close()


def new_worker(folder: Path, *, name: str, store: MemoryStore) -> RolloutWorker:
    return RolloutWorker(
        config=CONFIG,
        model_path=str(folder),
        revision=None,
        trust_remote_code=False,
        run_seed=0,
        name=name,
        fetch=store.fetch,
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
        secret="of this test",
    )


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
