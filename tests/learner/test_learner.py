"""A learner rank's other promises: exact resume, exports that load elsewhere, canary, bf16, metrics."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from learner.learner import Learner
from learner.step_statistics import LEARNER_METRICS
from system.config.schema import LearnerConfig, LossConfig
from system.data.batching import pack_batch
from system.errors import CheckpointError
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


def train_and_save(
    rank: int,
    num_ranks: int,
    port: int,
    config: LearnerConfig,
    model_path: str,
    samples: list[TrainingSample],
    folder: str,
) -> tuple[Weights, list[dict[str, float]], list[str]]:
    """Four updates without interruption, with a checkpoint after the second."""
    learner = start_learner(rank, num_ranks, port, config=config, loss=LossConfig(), model_path=model_path)
    results = []
    for update in range(4):
        results.append(values_of(step(learner, samples, rank=rank, num_ranks=num_ranks)))
        if update == 1:
            written = learner.save_checkpoint(folder)
    weights = weights_of(learner)
    learner.shutdown()
    return weights, results, sorted(written)


def resume(
    rank: int,
    num_ranks: int,
    port: int,
    config: LearnerConfig,
    model_path: str,
    samples: list[TrainingSample],
    folder: str,
) -> tuple[Weights, list[dict[str, float]], int]:
    """The last two of those updates in a new process."""
    learner = start_learner(rank, num_ranks, port, config=config, loss=LossConfig(), model_path=model_path)
    learner.load_checkpoint(folder, policy_version=2)
    version = learner.policy_version
    results = [values_of(step(learner, samples, rank=rank, num_ranks=num_ranks)) for _ in range(2)]
    weights = weights_of(learner)
    learner.shutdown()
    return weights, results, version


@pytest.mark.parametrize(
    ("zero_stage", "num_ranks", "dtype"),
    [(0, 1, "float32"), (1, 2, "float32"), (2, 2, "float32"), (3, 2, "float32"), (2, 2, "bfloat16")],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(
    tied_model: str, tmp_path: Path, zero_stage: int, num_ranks: int, dtype: str
) -> None:
    config = learner_config(zero_stage=zero_stage, num_ranks=num_ranks, dtype=dtype)
    arguments = (config, tied_model, make_samples(tied_model), str(tmp_path))
    saved = run_ranks(train_and_save, *arguments, num_ranks=num_ranks)
    weights, metrics, _ = saved[0]
    by_rank = [set(files) for _, _, files in saved]
    assert set.union(*by_rank) == {str(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert sum(map(len, by_rank)) == len(set.union(*by_rank))
    resumed_weights, resumed_metrics, version = run_ranks(resume, *arguments, num_ranks=num_ranks)[0]
    assert version == 2
    for name in weights:
        np.testing.assert_array_equal(resumed_weights[name], weights[name], err_msg=name)
    for resumed, uninterrupted in zip(resumed_metrics, metrics[2:], strict=True):
        untimed = {name for name in resumed if not name.endswith(("seconds", "per_second"))}
        assert {name: resumed[name] for name in untimed} == {name: uninterrupted[name] for name in untimed}


def load_only(rank: int, num_ranks: int, port: int, config: LearnerConfig, model_path: str, folder: str) -> str:
    learner = start_learner(rank, num_ranks, port, config=config, loss=LossConfig(), model_path=model_path)
    try:
        learner.load_checkpoint(folder, policy_version=3)
    except CheckpointError as error:
        return str(error)
    finally:
        learner.shutdown()
    return ""


def test_a_checkpoint_that_does_not_fit_is_refused(tied_model: str, tmp_path: Path) -> None:
    state = {"policy_version": 3, "num_ranks": 2, "zero_stage": 2, "dtype": "float32"}
    for name, content, message in [
        ("missing", None, "learner.json is missing"),
        ("broken", "{", "cannot be read"),
        ("other", json.dumps(state), "saved with learner.num_ranks=2, but the configuration says 1"),
        ("older", json.dumps({**state, "policy_version": 2}), "policy version 2, but the run state says 3"),
        ("empty", json.dumps({**state, "num_ranks": 1}), "no complete DeepSpeed checkpoint"),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        if content is not None:
            (folder / "learner.json").write_text(content)
        (error,) = run_ranks(load_only, learner_config(zero_stage=2), tied_model, str(folder), num_ranks=1)
        assert message in error


class TouchesFile:
    """What a crafted pickle does: it calls a function when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self._path}",)


def test_a_crafted_pickle_in_a_checkpoint_is_not_executed(tied_model: str, tmp_path: Path) -> None:
    config = learner_config(zero_stage=2)
    folder, evidence = tmp_path / "checkpoint", tmp_path / "executed"
    run_ranks(train_and_save, config, tied_model, make_samples(tied_model), str(folder), num_ranks=1)
    state = folder / "learner.json"
    state.write_text(state.read_text().replace('"policy_version": 2', '"policy_version": 3'))
    torch.save(TouchesFile(evidence), folder / "engine" / "mp_rank_00_model_states.pt")
    (error,) = run_ranks(load_only, config, tied_model, str(folder), num_ranks=1)
    assert "holds what is no data of a checkpoint" in error
    assert not evidence.exists()


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
    learner.export_hf(folder)
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
