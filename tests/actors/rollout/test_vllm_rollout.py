"""Rollout workers on real vLLM engines: what they draw, what they refuse, and how they end."""

import asyncio
import dataclasses
import os
import signal
import time

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoTokenizer

from actors.rollout.worker import RolloutWorker
from system.errors import EngineFailedError
from system.records import Trajectory
from tests.actors.rollout.engines import (
    CANARY,
    OTHER_PROMPT,
    PROMPT,
    SAMPLING,
    Rollout,
    bits,
    largest_error,
)
from tests.rollouts.checked_once import CheckedOnce
from tests.tiny_policies import (
    END,
    NUM_TOKENIZER_ENTRIES,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_a_group_is_complete_and_describes_itself(rollout: Rollout) -> None:
    worker = rollout.worker("tied")
    rollout.run(rollout.publish(rollout.base_model("tied"), "tied", policy_version=7))
    tokenizer = AutoTokenizer.from_pretrained(rollout.folders["tied"])
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


def test_two_turns_are_drawn_from_what_stands_before_them(rollout: Rollout) -> None:
    worker = rollout.worker("tied")
    model = rollout.base_model("tied")
    rollout.run(rollout.publish(model, "tied", policy_version=8))
    words = (70, 71, 72)
    rollouter = CheckedOnce(words)

    async def two_turns() -> tuple[Trajectory, ...]:
        engine = worker._running_engine()
        return await rollouter.generate(PROMPT, group_id=3, sampling=SAMPLING, engine=engine)

    trajectories = rollout.run(two_turns())
    assert len({one.token_ids.tobytes() for one in trajectories}) == SAMPLING.num_completions
    for one in trajectories:
        (_, first_end), (second_start, second_end) = one.turns
        assert one.token_ids[first_end:second_start].tolist() == list(words)
        assert second_end == len(one.token_ids)
        assert set(one.sampled_policy_versions.tolist()) == {8}
        assert largest_error(model, one, temperature=SAMPLING.temperature) < 1e-4
    again = rollout.run(two_turns())
    assert [one.token_ids.tolist() for one in again] == [one.token_ids.tolist() for one in trajectories]


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
