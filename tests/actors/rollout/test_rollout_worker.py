"""What a rollout worker promises without an engine."""

import asyncio

import numpy as np
import pytest

from actors.rollout.worker import NO_POLICY_VERSION, RolloutWorker
from system.config.schema import RolloutConfig
from system.errors import EngineFailedError
from system.records import Prompt, Sampling


def test_a_worker_that_was_not_started_says_so() -> None:
    config = RolloutConfig(max_prompt_tokens=8, max_completion_tokens=8)
    worker = RolloutWorker(
        config=config, model_path="nowhere", revision=None, trust_remote_code=False, run_seed=0, name="rollout-3"
    )
    prompt = Prompt(
        prompt_id="p", token_ids=np.asarray([1, 2], dtype=np.int32), text="", reference_answer="", task="test"
    )
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, num_completions=2, seed=0)
    with pytest.raises(EngineFailedError, match="rollout-3 is not running"):
        asyncio.run(worker.generate(prompt, group_id=0, sampling=sampling))
    assert worker.num_in_flight == 0
    assert worker.policy_version == NO_POLICY_VERSION
    asyncio.run(worker.shutdown())  # harmless
