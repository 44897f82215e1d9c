"""Snapshots of a learner on every ZeRO stage: the very weights, their proof, and nothing beyond one bucket."""

from pathlib import Path

import numpy as np
import pytest
import torch

from learner.publisher import SnapshotPublisher
from learner.scoring_snapshots import NewestSnapshot
from system.config.schema import LearnerConfig, LossConfig
from system.data.batching import pack_batch
from system.errors import NotFiniteError
from system.records import TrainingSample
from system.weights.digest import checked_buckets
from tests.learner.learner_ranks import learner_config, make_samples, run_ranks, start_learner, write_model
from tests.weights.memory_store import MemoryStore

CANARY = [3, 5, 7, 9, 11]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("tied"), tied=True)


def publish_twice(
    rank: int, num_ranks: int, port: int, config: LearnerConfig, model_path: str, samples: list[TrainingSample]
) -> dict[str, object]:
    learner = start_learner(rank, num_ranks, port, config=config, loss=LossConfig(), model_path=model_path)
    store = MemoryStore()
    publisher = SnapshotPublisher(
        learner._engine,
        rank=rank,
        architecture="Qwen2ForCausalLM",
        bucket_bytes=4096,
        put=store.put,
        scoring=NewestSnapshot(),
    )
    digests, largest = [], 0.0
    for _ in range(2):
        canary = learner.canary_logprobs(CANARY)
        manifest = publisher.publish(
            policy_version=learner.policy_version, canary_token_ids=CANARY, canary_logprobs=canary
        )
        full = learner.gather_full_weights()
        if rank == 0:
            assert manifest is not None
            assert len(manifest.buckets) > 3
            buffers = (torch.tensor(each) for each in store.fetch(manifest.references))
            held = dict(pair for pairs in checked_buckets(buffers, manifest) for pair in pairs)
            assert list(held) == list(full)
            largest = max(largest, *(float((held[name] - full[name]).abs().max()) for name in full))
            assert manifest.canary_logprobs is not None
            assert manifest.canary_logprobs.tolist() == canary.tolist()
            digests.append((manifest.policy_version, manifest.digest))
        else:
            assert manifest is None
            assert store.objects == {}
        batch = pack_batch(samples, num_ranks=num_ranks, tokens_per_microbatch=200)
        learner.train_step(batch.steps_by_rank[rank])
    message = ""
    with torch.no_grad():
        for parameter in publisher._parameters.values():
            if parameter.numel():
                parameter.view(-1)[0] = np.nan
    try:
        publisher.publish(policy_version=2, canary_token_ids=CANARY, canary_logprobs=learner.canary_logprobs(CANARY))
    except NotFiniteError as error:
        message = str(error)
    learner.shutdown()
    return {"digests": digests, "largest": largest, "message": message}


@pytest.mark.parametrize(("zero_stage", "num_ranks"), [(0, 1), (2, 2), (3, 2)])
def test_a_snapshot_is_the_learners_weights_at_its_version(model_path: str, zero_stage: int, num_ranks: int) -> None:
    config = learner_config(zero_stage=zero_stage, num_ranks=num_ranks)
    results = run_ranks(publish_twice, config, model_path, make_samples(model_path), num_ranks=num_ranks)
    (first, second) = results[0]["digests"]
    assert (first[0], second[0]) == (0, 1)
    assert first[1] != second[1]
    assert results[0]["largest"] == 0.0
    if zero_stage < 3:
        assert "values of model.embed_tokens.weight are NaN or infinite" in results[0]["message"]


def test_all_stages_publish_the_same_bytes_for_the_same_files(model_path: str, tmp_path: Path) -> None:
    samples = make_samples(model_path)
    digests = {
        run_ranks(publish_twice, learner_config(zero_stage=stage, num_ranks=2), model_path, samples, num_ranks=2)[0][
            "digests"
        ][0]
        for stage in (2, 3)
    }
    assert len(digests) == 1
