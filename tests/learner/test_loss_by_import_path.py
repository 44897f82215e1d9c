"""A loss that the configuration names by its import path, and how far it is from the learner's step."""

import numpy as np
import pytest

from system.config.schema import LearnerConfig, LossConfig
from system.data.batching import pack_batch
from system.records import TrainingSample
from tests.learner.learner_ranks import learner_config, make_samples, run_ranks, start_learner, write_model
from tests.learner.recording_loss import RecordingLoss

pytestmark = pytest.mark.integration


def train(
    rank: int,
    num_ranks: int,
    port: int,
    config: LearnerConfig,
    model_path: str,
    samples: list[TrainingSample],
    name: str,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    loss = LossConfig(name=name, options={"clip_high": 0.3})
    learner = start_learner(rank, num_ranks, port, config=config, loss=loss, model_path=model_path)
    batch = pack_batch(samples, num_ranks=num_ranks, tokens_per_microbatch=200)
    learner.train_step(batch.steps_by_rank[rank])
    weights = {name: tensor.numpy().copy() for name, tensor in learner.gather_full_weights().items()}
    learner.shutdown()
    return weights, RecordingLoss.callers


def test_a_user_s_own_loss_trains_and_is_two_calls_from_the_learner_s_step(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model_path = write_model(tmp_path_factory.mktemp("tied"), tied=True)
    arguments = (learner_config(), model_path, make_samples(model_path))
    expected, _ = run_ranks(train, *arguments, "clipped_surrogate", num_ranks=1)[0]
    weights, callers = run_ranks(train, *arguments, "tests.learner.recording_loss:RecordingLoss", num_ranks=1)[0]
    for name in expected:
        np.testing.assert_array_equal(weights[name], expected[name], err_msg=name)
    assert callers.index("train_step") <= 1, f"calls from the loss up: {callers}"
