"""The engine's processes: they do not outlive their owner, and several of them are several receivers."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from actors.rollout.worker import RolloutWorker
from system.config.schema import RolloutConfig
from system.weights.broadcast import WeightGroup, send_buckets
from tests.actors.rollout.engines import CANARY, PROMPT, SAMPLING, spec_for
from tests.tiny_policies import changed, make_policy, named_weights, reference_logprobs
from tests.weights.memory_store import MemoryStore

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).parents[3]
OWNER = """
import asyncio, sys, time
from actors.rollout.worker import RolloutWorker
from system.config.schema import RolloutConfig
if __name__ == "__main__":
    config = RolloutConfig(max_prompt_tokens=64, max_completion_tokens=64, enforce_eager=True, kv_cache_gib=0.25)
    worker = RolloutWorker(
        config=config, model_path=sys.argv[1], revision=None, trust_remote_code=False, run_seed=0
    )
    asyncio.run(worker.start())
    print("ready", flush=True)
    time.sleep(600)
"""


def test_the_engine_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "owner.py"
    script.write_text(OWNER, encoding="utf-8")
    folder = make_policy(tmp_path / "policy", is_tied=True)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    owner = subprocess.Popen(
        [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert owner.stdout is not None
    assert any(line.startswith("ready") for line in owner.stdout)
    processes = psutil.Process(owner.pid).children(recursive=True)
    assert len(processes) >= 1
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert not alive


def test_why_an_engine_cannot_start_is_in_the_message(tmp_path: Path) -> None:
    script, output = tmp_path / "owner.py", tmp_path / "worker.out"
    script.write_text(OWNER, encoding="utf-8")
    folder = make_policy(tmp_path / "policy", is_tied=True, hidden_size=64)
    with output.open("w") as file:  # as a worker of Ray has it
        done = subprocess.run(
            [sys.executable, str(script), str(folder)],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("system.errors.EngineFailedError: ")]
    assert "the rollout engine failed: RuntimeError: " in message
    assert "head_dim=16" in message
    assert f"(in {output})" in message


def test_both_processes_of_a_tensor_parallel_engine_receive_the_weights(tmp_path: Path) -> None:
    from transformers import Qwen2ForCausalLM

    folder = make_policy(tmp_path / "policy", is_tied=True)
    config = RolloutConfig(
        max_prompt_tokens=64,
        max_completion_tokens=448,
        enforce_eager=True,
        kv_cache_gib=0.25,
        tensor_parallel_size=2,
    )
    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    store = MemoryStore()

    async def update_and_draw() -> None:
        worker = RolloutWorker(
            config=config,
            model_path=str(folder),
            revision=None,
            trust_remote_code=False,
            run_seed=0,
            fetch=store.fetch,
        )
        await worker.start()
        try:
            assert worker.num_ranks == 2
            changed(model, seed=1)
            manifests = [
                store.publish(
                    named_weights(model),
                    policy_version=version,
                    canary_token_ids=CANARY,
                    canary_logprobs=reference_logprobs(model, CANARY),
                )
                for version in (1, 2)
            ]
            status = await worker.load_weights(manifests[0], 60.0)
            assert status.canary_max_abs_diff is not None
            assert status.canary_max_abs_diff < 1e-4
            spec = spec_for(2)
            sender, _ = await asyncio.gather(
                asyncio.to_thread(WeightGroup, spec, rank=0), worker.join_weight_group(spec, first_rank=1)
            )
            buffers = [torch.tensor(each) for each in store.fetch(manifests[1].references)]
            sending = asyncio.to_thread(send_buckets, sender, buffers, manifest=manifests[1], device=CPU)
            _, status = await asyncio.gather(sending, worker.receive_broadcast(manifests[1]))
            assert (status.policy_version, status.digest) == (2, manifests[1].digest)
            assert np.abs(await worker.canary_logprobs(CANARY) - reference_logprobs(model, CANARY)).max() < 1e-4
            group = await worker.generate(PROMPT, group_id=0, sampling=SAMPLING)
            assert len(group.trajectories) == SAMPLING.num_completions
        finally:
            await worker.shutdown()

    asyncio.run(update_and_draw())
