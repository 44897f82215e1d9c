"""The distributed learner against a plain single-process loop: one sequence at a time, torch's AdamW and clipping.

Tolerance: 1e-5 absolute after 5 updates at a peak rate of 1e-3, while the parameters move by about 3e-3. AdamW
divides by the gradient's own size, so a gradient that is zero in theory (such as a key bias that only shifts all
scores of a query) would turn rounding noise of 1e-9 into full steps; an epsilon of 1e-6 keeps such noise below the
tolerance without touching real gradients, which are around 1e-3.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from system.config.schema import AlgorithmConfig, LearnerConfig
from system.data.batching import pack_batch
from system.records import TrainingSample
from tests.learner.learner_ranks import (
    NUM_UPDATES,
    learner_config,
    make_samples,
    run_ranks,
    start_learner,
    write_model,
)

Weights = dict[str, np.ndarray]

pytestmark = pytest.mark.integration


def reference_training(
    model_path: str, samples: list[TrainingSample], *, config: LearnerConfig, algorithm: AlgorithmConfig
) -> tuple[Weights, list[float]]:
    """Parameters after NUM_UPDATES updates, and the gradient norm of each, by the plainest code that does it."""
    model = Qwen2ForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation="eager")
    frozen = Qwen2ForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation="eager")
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=config.adam_betas, eps=config.adam_epsilon, weight_decay=config.weight_decay
    )
    total_tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
    rates = [0.5e-3, 1e-3] + [1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2) for x in (0.0, 0.5, 1.0)]
    norms = []
    for rate in rates:
        optimizer.zero_grad()
        for sample in samples:
            ids = torch.from_numpy(sample.token_ids).long()
            mask = torch.from_numpy(sample.loss_mask)[1:]
            log_p = model(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
            logprob = log_p[torch.arange(len(ids) - 1), ids[1:]]
            ratio = (logprob - torch.from_numpy(sample.rollout_logprobs)[1:]).exp()
            advantage = torch.from_numpy(sample.advantages)[1:]
            clipped = ratio.clamp(1 - algorithm.clip_low, 1 + algorithm.clip_high)
            ppo = torch.minimum(ratio * advantage, clipped * advantage)
            # Beyond the cap, the gradient of the capped weight times the log-probability.
            assert algorithm.importance_cap is not None
            capped = algorithm.importance_cap * advantage * logprob
            loss = -torch.where((ratio > algorithm.importance_cap) & (advantage < 0), capped, ppo)
            if algorithm.kl_coefficient:
                with torch.no_grad():
                    frozen_log_p = frozen(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
                difference = frozen_log_p[torch.arange(len(ids) - 1), ids[1:]] - logprob
                loss = loss + algorithm.kl_coefficient * (difference.exp() - difference - 1)
            loss = loss + algorithm.entropy_coefficient * (log_p.exp() * log_p).sum(dim=-1)
            if algorithm.loss_denominator == "token_mean":
                (loss[mask].sum() / total_tokens).backward()
            else:
                (loss[mask].mean() / len(samples)).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}, norms


def train(
    rank: int,
    num_ranks: int,
    port: int,
    config: LearnerConfig,
    algorithm: AlgorithmConfig,
    model_path: str,
    samples: list[TrainingSample],
    tokens_per_microbatch: int,
) -> tuple[Weights, list[dict[str, float]]]:
    learner = start_learner(rank, num_ranks, port, config=config, algorithm=algorithm, model_path=model_path)
    metrics = []
    for update in range(NUM_UPDATES):
        # The number of micro-batches may differ from step to step.
        tokens = tokens_per_microbatch + 20 * update
        batch = pack_batch(samples, num_ranks=num_ranks, tokens_per_microbatch=tokens)
        result = learner.train_step(
            batch.micro_batches[rank], num_loss_tokens=batch.num_loss_tokens, num_sequences=batch.num_sequences
        )
        metrics.append({metric.name: metric.value for metric in result.metrics})
    weights = {name: tensor.numpy().copy() for name, tensor in learner.gather_full_weights().items()}
    learner.shutdown()
    return weights, metrics


class Fixture:
    """One model, its samples and the reference's answer for each algorithm, computed once."""

    def __init__(self, folder: Path, *, tied: bool) -> None:
        self.model_path = write_model(folder, tied=tied)
        self.samples = make_samples(self.model_path)
        self._references: dict[str, tuple[Weights, list[float]]] = {}

    def reference(self, algorithm: AlgorithmConfig) -> tuple[Weights, list[float]]:
        if repr(algorithm) not in self._references:
            self._references[repr(algorithm)] = reference_training(
                self.model_path, self.samples, config=learner_config(), algorithm=algorithm
            )
        return self._references[repr(algorithm)]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return Fixture(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return Fixture(tmp_path_factory.mktemp("untied"), tied=False)


def check_against_reference(
    fixture: Fixture, *, num_ranks: int, tokens_per_microbatch: int, algorithm: AlgorithmConfig, **changes: Any
) -> list[dict[str, float]]:
    """Rank 0's metrics, after comparing its weights and gradient norms with the reference."""
    expected, norms = fixture.reference(algorithm)
    config = learner_config(num_ranks=num_ranks, **changes)
    arguments = (config, algorithm, fixture.model_path, fixture.samples, tokens_per_microbatch)
    results = run_ranks(train, *arguments, num_ranks=num_ranks)
    weights, metrics = results[0]
    assert list(weights) == list(expected)
    differences = {name: float(np.abs(weights[name] - expected[name]).max()) for name in expected}
    assert max(differences.values()) < 1e-5, differences
    np.testing.assert_allclose([step["learner/gradient_norm"] for step in metrics], norms, rtol=1e-4)
    assert min(norms) > config.max_grad_norm, "the batch must make the clip act"
    for other_weights, other_metrics in results[1:]:
        assert other_weights == {}
        assert other_metrics == metrics
    return metrics


@pytest.mark.parametrize("tokens_per_microbatch", [80, 2048])
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_parameters_equal_the_plain_loop(
    tied: Fixture, zero_stage: int, num_ranks: int, tokens_per_microbatch: int
) -> None:
    check_against_reference(
        tied,
        num_ranks=num_ranks,
        tokens_per_microbatch=tokens_per_microbatch,
        algorithm=AlgorithmConfig(),
        zero_stage=zero_stage,
    )


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_kl_entropy_and_sequence_mean_equal_the_plain_loop(untied: Fixture, zero_stage: int) -> None:
    algorithm = AlgorithmConfig(
        clip_high=0.3, kl_coefficient=0.1, entropy_coefficient=0.05, loss_denominator="sequence_mean"
    )
    metrics = check_against_reference(
        untied, num_ranks=2, tokens_per_microbatch=100, algorithm=algorithm, zero_stage=zero_stage
    )
    assert metrics[0]["learner/reference_kl_nats"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[-1]["learner/reference_kl_nats"] > 1e-5


@pytest.mark.parametrize(
    ("zero_stage", "changes"),
    [
        (2, {"gradient_checkpointing": True}),
        (3, {"gradient_checkpointing": True}),
        (2, {"offload_optimizer": True}),
        (3, {"offload_optimizer": True}),
    ],
)
def test_options_change_no_parameter(tied: Fixture, zero_stage: int, changes: dict[str, Any]) -> None:
    check_against_reference(
        tied,
        num_ranks=2,
        tokens_per_microbatch=100,
        algorithm=AlgorithmConfig(),
        zero_stage=zero_stage,
        **changes,
    )


def test_the_reference_moves_far_beyond_the_tolerance(tied: Fixture) -> None:
    initial = Qwen2ForCausalLM.from_pretrained(tied.model_path, dtype=torch.float32)
    expected, _ = tied.reference(AlgorithmConfig())
    moved = np.concatenate(
        [np.abs(expected[name] - parameter.detach().numpy()).ravel() for name, parameter in initial.named_parameters()]
    )
    assert np.median(moved) > 1e-3
