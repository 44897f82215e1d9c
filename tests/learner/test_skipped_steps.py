"""A gradient that is NaN or infinite: no rank takes the step, no version comes of it, the next step is as good."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from learner.learner import Learner
from system.config.schema import LearnerConfig, LossConfig
from system.data.batching import pack_batch
from system.errors import GradientError
from system.records import StepResult, TrainingSample
from tests.learner.learner_ranks import learner_config, make_samples, run_ranks, start_learner, write_model

Weights = dict[str, np.ndarray]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("tied"), tied=True)


def with_one_bad(samples: list[TrainingSample], *, advantage: float) -> list[TrainingSample]:
    """The first sample's advantage is not finite, so that one rank alone computes a bad gradient."""
    bad = replace(samples[0], advantages=np.where(samples[0].loss_mask, advantage, 0).astype(np.float32))
    return [bad, *samples[1:]]


def step(
    learner: Learner, samples: list[TrainingSample], *, rank: int, num_ranks: int, optimizer_steps: int = 1
) -> StepResult:
    batch = pack_batch(samples, num_ranks=num_ranks, tokens_per_microbatch=100, optimizer_steps=optimizer_steps)
    return learner.train_step(batch.steps_by_rank[rank])


def weights_of(learner: Learner) -> Weights:
    return {name: tensor.float().numpy().copy() for name, tensor in learner.gather_full_weights().items()}


def train(
    rank: int, num_ranks: int, port: int, config: LearnerConfig, model_path: str, batches: list[list[TrainingSample]]
) -> list[tuple[StepResult, Weights]]:
    learner = start_learner(rank, num_ranks, port, config=config, loss=LossConfig(), model_path=model_path)
    results = []
    for samples in batches:
        result = step(learner, samples, rank=rank, num_ranks=num_ranks)
        results.append((result, weights_of(learner)))
    learner.shutdown()
    return results


@pytest.mark.parametrize(
    ("advantage", "num_ranks", "changes"),
    [
        (np.nan, 1, {"zero_stage": 0}),
        (np.inf, 2, {"zero_stage": 0}),
        (np.nan, 2, {"zero_stage": 1}),
        (np.nan, 2, {"zero_stage": 2}),
        (np.inf, 2, {"zero_stage": 3}),
        (np.nan, 2, {"zero_stage": 0, "dtype": "bfloat16"}),
        (np.nan, 2, {"zero_stage": 2, "dtype": "bfloat16"}),
        (np.nan, 2, {"zero_stage": 3, "dtype": "bfloat16"}),
        (np.nan, 2, {"zero_stage": 2, "offload_optimizer": True}),
        (np.nan, 2, {"zero_stage": 3, "offload_optimizer": True}),
    ],
)
def test_a_bad_gradient_leaves_weights_optimizer_and_version_as_they_were(
    model_path: str, advantage: float, num_ranks: int, changes: dict[str, Any]
) -> None:
    good = make_samples(model_path)
    bad = with_one_bad(good, advantage=advantage)
    config = learner_config(num_ranks=num_ranks, **changes)
    by_rank = run_ranks(train, config, model_path, [good, bad, good], num_ranks=num_ranks)
    undisturbed = run_ranks(train, config, model_path, [good, good], num_ranks=num_ranks)[0]
    for results in by_rank:
        assert [result.has_new_weights for result, _ in results] == [True, False, True]
        assert [result.policy_version for result, _ in results] == [1, 1, 2]
    (first, before), (skipped, after), (last, final) = by_rank[0]
    for name in before:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        np.testing.assert_array_equal(final[name], undisturbed[1][1][name], err_msg=name)
    metrics = {metric.name: metric.value for metric in skipped.metrics}
    assert metrics["learner/skipped_steps"] == 1
    assert "learner/gradient_norm" not in metrics
    assert "learner/loss" not in metrics
    assert all(np.isfinite(value) for value in metrics.values())
    # the version that comes of the next batch tells of it, since a batch without a version is not logged
    counts = [{metric.name: metric.value for metric in result.metrics} for result in (first, last)]
    assert [metrics["learner/skipped_steps"] for metrics in counts] == [0, 1]


def split_and_fail(
    rank: int, num_ranks: int, port: int, config: LearnerConfig, model_path: str, samples: list[TrainingSample]
) -> tuple[list[StepResult], str]:
    """Half a batch is bad, then all of it until the learner gives up."""
    learner = start_learner(
        rank, num_ranks, port, config=config, loss=LossConfig(), model_path=model_path, optimizer_steps=2
    )
    results = [step(learner, samples, rank=rank, num_ranks=num_ranks, optimizer_steps=steps) for steps in (2, 2, 1)]
    try:
        step(learner, samples, rank=rank, num_ranks=num_ranks)
    except GradientError as error:
        return results, str(error)
    finally:
        learner.shutdown()
    return results, ""


def test_one_bad_step_of_a_batch_is_left_out_and_too_many_in_a_row_end_the_run(model_path: str) -> None:
    samples = with_one_bad(make_samples(model_path), advantage=np.nan)
    config = learner_config(num_ranks=2, zero_stage=2, max_skipped_steps=1)
    for results, error in run_ranks(split_and_fail, config, model_path, samples, num_ranks=2):
        # the second half of each batch is good, which begins the count anew
        assert [result.has_new_weights for result in results] == [True, True, False]
        assert [result.policy_version for result in results] == [1, 2, 2]
        metrics = {metric.name: metric.value for metric in results[0].metrics}
        assert metrics["learner/skipped_steps"] == 1
        assert metrics["learner/gradient_norm"] > 0
        assert "NaN or infinite in 2 optimizer steps in a row, at policy version 2" in error
