"""A learner rank's other promises: exports that load elsewhere, canary, bf16, metrics."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from learner.export import export_hf
from learner.learner import Learner
from learner.step_statistics import LEARNER_METRICS
from system.config.schema import LearnerConfig, LossConfig
from system.data.batching import pack_batch
from system.records import StepResult, TrainingSample
from tests.learner.learner_ranks import learner_config, make_samples, run_ranks, start_learner, write_model

Weights = dict[str, np.ndarray]

pytestmark = pytest.mark.integration

CANARY = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("untied"), tied=False)


def step(
    learner: Learner, samples: list[TrainingSample], *, rank: int, num_ranks: int, skip_zero_advantages: bool = False
) -> StepResult:
    batch = pack_batch(
        samples, num_ranks=num_ranks, tokens_per_microbatch=200, skip_zero_advantages=skip_zero_advantages
    )
    return learner.train_step(batch.steps_by_rank[rank])


def weights_of(learner: Learner) -> Weights:
    return {name: tensor.float().numpy().copy() for name, tensor in learner.gather_full_weights().items()}


def values_of(result: StepResult) -> dict[str, float]:
    return {metric.name: metric.value for metric in result.metrics}


def train_and_export(
    rank: int,
    num_ranks: int,
    port: int,
    config: LearnerConfig,
    model_path: str,
    samples: list[TrainingSample],
    folder: str,
) -> np.ndarray:
    learner = start_learner(rank, num_ranks, port, config=config, loss=LossConfig(), model_path=model_path)
    step(learner, samples, rank=rank, num_ranks=num_ranks)
    full = learner.gather_full_weights()
    if rank == 0:
        export_hf(folder, weights=full, source=Path(model_path))
    canary = learner.canary_logprobs(CANARY)
    learner.shutdown()
    return canary


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(("zero_stage", "num_ranks"), [(2, 1), (3, 2)])
def test_an_export_loads_in_transformers_with_the_learners_logprobs(
    tied_model: str, untied_model: str, tmp_path: Path, is_tied: bool, zero_stage: int, num_ranks: int
) -> None:
    model_path = tied_model if is_tied else untied_model
    config = learner_config(zero_stage=zero_stage, num_ranks=num_ranks)
    canaries = run_ranks(
        train_and_export, config, model_path, make_samples(model_path), str(tmp_path), num_ranks=num_ranks
    )
    model, loading = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_tied
    ids = torch.tensor(CANARY)
    with torch.no_grad():
        log_p = model(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
        before = Qwen2ForCausalLM.from_pretrained(model_path)(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
    picked = torch.arange(len(ids) - 1), ids[1:]
    for canary in canaries:
        assert canary.dtype == np.float32
        np.testing.assert_allclose(canary, log_p[picked].numpy(), atol=1e-5)
    assert float((before[picked] - log_p[picked]).abs().max()) > 1e-3, "the step must have changed the model"
    assert AutoTokenizer.from_pretrained(tmp_path).convert_ids_to_tokens(CANARY[:2]) == ["w3", "w1"]
    assert "credence" not in (tmp_path / "config.json").read_text(), "our attention is no property of the model"


def train_once(
    rank: int, num_ranks: int, port: int, config: LearnerConfig, model_path: str, samples: list[TrainingSample]
) -> tuple[Weights, dict[str, float]]:
    learner = start_learner(rank, num_ranks, port, config=config, loss=LossConfig(), model_path=model_path)
    for _ in range(3):
        result = step(learner, samples, rank=rank, num_ranks=num_ranks)
    weights = weights_of(learner)
    learner.shutdown()
    return weights, values_of(result)


@pytest.mark.parametrize(("zero_stage", "num_ranks"), [(0, 1), (1, 1), (3, 2)])
def test_bfloat16_stays_close_to_float32(untied_model: str, zero_stage: int, num_ranks: int) -> None:
    samples = make_samples(untied_model)
    exact, _ = run_ranks(train_once, learner_config(zero_stage=2), untied_model, samples, num_ranks=1)[0]
    config = learner_config(zero_stage=zero_stage, num_ranks=num_ranks, dtype="bfloat16")
    weights, metrics = run_ranks(train_once, config, untied_model, samples, num_ranks=num_ranks)[0]
    assert metrics["learner/gradient_norm"] > 0
    assert max(float(np.abs(weights[name] - exact[name]).max()) for name in exact) < 0.02


def test_metrics_are_declared_and_tell_staleness_from_mismatch(tied_model: str) -> None:
    samples = make_samples(tied_model)
    _, metrics = run_ranks(train_once, learner_config(num_ranks=2, zero_stage=2), tied_model, samples, num_ranks=2)[0]
    assert set(metrics) <= {definition.name for definition in LEARNER_METRICS}
    # At the third update the policy is version 2; the samples say versions 0 and -1.
    assert metrics["learner/stale_tokens_fraction"] == 1.0
    assert metrics["learner/staleness_max_versions"] == 3.0
    assert "learner/mismatch_kl_fresh_nats" not in metrics
    assert metrics["learner/mismatch_kl_stale_nats"] == pytest.approx(metrics["learner/mismatch_kl_nats"])
    # Behaviour log-probabilities carry noise of 0.4 nat: k3 is about 0.4 ** 2 / 2.
    assert 0.04 < metrics["learner/mismatch_kl_nats"] < 0.16
    assert metrics["learner/ratio_max"] > metrics["learner/importance_weight_max"] == 2.0
    assert 0 < metrics["learner/truncated_fraction"] < metrics["learner/clip_fraction"] < 0.5
    assert metrics["learner/num_loss_tokens"] == sum(int(sample.loss_mask.sum()) for sample in samples)
    assert metrics["learner/num_tokens"] == sum(len(sample.token_ids) for sample in samples)
    assert metrics["learner/num_sequences"] == 16


def train_twice(
    rank: int,
    num_ranks: int,
    port: int,
    config: LearnerConfig,
    model_path: str,
    samples: list[TrainingSample],
    skip_zero_advantages: bool,
) -> tuple[Weights, dict[str, float]]:
    learner = start_learner(rank, num_ranks, port, config=config, loss=LossConfig(), model_path=model_path)
    for _ in range(2):
        result = step(learner, samples, rank=rank, num_ranks=num_ranks, skip_zero_advantages=skip_zero_advantages)
    weights = weights_of(learner)
    learner.shutdown()
    return weights, values_of(result)


def test_leaving_out_samples_without_advantage_changes_no_gradient(untied_model: str) -> None:
    samples = [
        replace(sample, advantages=sample.advantages * (index % 3 > 0))
        for index, sample in enumerate(make_samples(untied_model))
    ]
    arguments = (learner_config(zero_stage=2, num_ranks=2), untied_model, samples)
    weights, with_all = run_ranks(train_twice, *arguments, False, num_ranks=2)[0]
    skipped_weights, skipped = run_ranks(train_twice, *arguments, True, num_ranks=2)[0]
    assert skipped["learner/num_tokens"] < 0.8 * with_all["learner/num_tokens"]
    assert skipped["learner/gradient_norm"] == pytest.approx(with_all["learner/gradient_norm"], rel=1e-4)
    for name in weights:
        np.testing.assert_allclose(skipped_weights[name], weights[name], atol=1e-6, err_msg=name)
