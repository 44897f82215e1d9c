"""The distributed learner against a plain single-process loop: one sequence at a time, torch's AdamW and clipping.

Tolerance: 1e-5 absolute after 5 updates at a peak rate of 1e-3, while the parameters move by about 3e-3. AdamW
divides by the gradient's own size, so a gradient that is zero in theory (such as a key bias that only shifts all
scores of a query) would turn rounding noise of 1e-9 into full steps; an epsilon of 1e-6 keeps such noise below the
tolerance without touching real gradients, which are around 1e-3.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from system.config.options import make_options
from system.config.schema import LearnerConfig, LossConfig
from system.data.batching import pack_batch, pack_portion
from system.losses.options import CispoOptions, ClippedSurrogateOptions, GspoOptions
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


def plain_loss(
    loss: LossConfig, *, logprob: Tensor, rollout_logprob: Tensor, advantage: Tensor, mask: Tensor
) -> Tensor:
    """Per-token loss [T] of one sequence, as the papers write it."""
    log_ratio = (logprob - rollout_logprob).where(mask, torch.zeros(()))
    ratio = log_ratio.exp()
    if loss.name == "gspo":
        bounds = make_options(GspoOptions, loss.options, prefix="loss.options")
        ratio = (log_ratio.sum() / mask.sum()).exp().expand_as(advantage)
        return -torch.minimum(ratio * advantage, ratio.clamp(1 - bounds.clip_low, 1 + bounds.clip_high) * advantage)
    if loss.name == "cispo":
        weight = ratio.detach().clamp(max=1 + make_options(CispoOptions, loss.options, prefix="loss.options").clip_high)
        return -weight * advantage * logprob
    options = make_options(ClippedSurrogateOptions, loss.options, prefix="loss.options")
    ppo = torch.minimum(ratio * advantage, ratio.clamp(1 - options.clip_low, 1 + options.clip_high) * advantage)
    # Beyond the cap, the gradient of the capped weight times the log-probability.
    assert options.importance_cap is not None
    capped = options.importance_cap * advantage * logprob
    return -torch.where((ratio > options.importance_cap) & (advantage < 0), capped, ppo)


def reference_training(
    model_path: str, samples: list[TrainingSample], *, config: LearnerConfig, loss: LossConfig, optimizer_steps: int
) -> tuple[Weights, list[float]]:
    """Parameters after NUM_UPDATES updates, and the gradient norm of each step, by the plainest code that does it."""
    model = Qwen2ForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation="eager")
    frozen = Qwen2ForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation="eager")
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=config.adam_betas, eps=config.adam_epsilon, weight_decay=config.weight_decay
    )
    num_steps = NUM_UPDATES * optimizer_steps
    num_warmup = 2 * optimizer_steps
    rates = [1e-3 * (step + 1) / num_warmup for step in range(num_warmup)]
    rates += [1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * x)) / 2) for x in np.linspace(0, 1, num_steps - num_warmup)]
    norms = []
    for step, rate in enumerate(rates):
        size = len(samples) // optimizer_steps
        part = samples[step % optimizer_steps * size :][:size]
        total_tokens = sum(int(sample.loss_mask.sum()) for sample in part)
        optimizer.zero_grad()
        for sample in part:
            ids = torch.from_numpy(sample.token_ids).long()
            mask = torch.from_numpy(sample.loss_mask)[1:]
            log_p = model(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
            logprob = log_p[torch.arange(len(ids) - 1), ids[1:]]
            token_loss = plain_loss(
                loss,
                logprob=logprob,
                rollout_logprob=torch.from_numpy(sample.rollout_logprobs)[1:],
                advantage=torch.from_numpy(sample.advantages)[1:],
                mask=mask,
            )
            if loss.kl_coefficient:
                with torch.no_grad():
                    frozen_log_p = frozen(input_ids=ids[None]).logits[0, :-1].log_softmax(dim=-1)
                difference = frozen_log_p[torch.arange(len(ids) - 1), ids[1:]] - logprob
                token_loss = token_loss + loss.kl_coefficient * (difference.exp() - difference - 1)
            token_loss = token_loss + loss.entropy_coefficient * (log_p.exp() * log_p).sum(dim=-1)
            divisor = {
                "token_mean": total_tokens,
                "sequence_mean": int(mask.sum()) * len(part),
                "constant": (loss.constant_length or 0) * len(part),
            }
            (token_loss[mask].sum() / divisor[loss.denominator]).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}, norms


def train(
    rank: int,
    num_ranks: int,
    port: int,
    config: LearnerConfig,
    loss: LossConfig,
    model_path: str,
    samples: list[TrainingSample],
    tokens_per_microbatch: int,
    optimizer_steps: int,
    num_portions: int,
) -> tuple[Weights, list[dict[str, float]]]:
    learner = start_learner(
        rank, num_ranks, port, config=config, loss=loss, model_path=model_path, optimizer_steps=optimizer_steps
    )
    metrics = []
    for update in range(NUM_UPDATES):
        # The number of micro-batches may differ from step to step.
        tokens = tokens_per_microbatch + 20 * update
        batch = pack_batch(samples, num_ranks=num_ranks, tokens_per_microbatch=tokens, optimizer_steps=optimizer_steps)
        steps = batch.steps_by_rank[rank]
        for start in range(num_portions - 1):
            part = samples[start::num_portions]
            learner.accumulate(pack_portion(part, num_ranks=num_ranks, tokens_per_microbatch=tokens)[rank])
        if num_portions > 1:
            last = pack_portion(
                samples[num_portions - 1 :: num_portions], num_ranks=num_ranks, tokens_per_microbatch=tokens
            )
            steps = (replace(steps[0], micro_batches=last[rank].micro_batches),)
        result = learner.train_step(steps)
        assert result.policy_version == update + 1, "one version a batch, however many optimizer steps"
        metrics.append({metric.name: metric.value for metric in result.metrics})
    weights = {name: tensor.numpy().copy() for name, tensor in learner.gather_full_weights().items()}
    learner.shutdown()
    return weights, metrics


class Fixture:
    """One model, its samples and the reference's answer for each loss, computed once."""

    def __init__(self, folder: Path, *, tied: bool) -> None:
        self.model_path = write_model(folder, tied=tied)
        self.samples = make_samples(self.model_path)
        self._references: dict[str, tuple[Weights, list[float]]] = {}

    def reference(self, loss: LossConfig, *, optimizer_steps: int = 1) -> tuple[Weights, list[float]]:
        name = f"{loss} {optimizer_steps}"
        if name not in self._references:
            self._references[name] = reference_training(
                self.model_path,
                self.samples,
                config=learner_config(),
                loss=loss,
                optimizer_steps=optimizer_steps,
            )
        return self._references[name]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return Fixture(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return Fixture(tmp_path_factory.mktemp("untied"), tied=False)


def check_against_reference(
    fixture: Fixture,
    *,
    num_ranks: int,
    tokens_per_microbatch: int,
    loss: LossConfig,
    optimizer_steps: int = 1,
    num_portions: int = 1,
    **changes: Any,
) -> list[dict[str, float]]:
    """Rank 0's metrics, after comparing its weights and gradient norms with the reference."""
    expected, norms = fixture.reference(loss, optimizer_steps=optimizer_steps)
    config = learner_config(num_ranks=num_ranks, **changes)
    arguments = (
        config,
        loss,
        fixture.model_path,
        fixture.samples,
        tokens_per_microbatch,
        optimizer_steps,
        num_portions,
    )
    results = run_ranks(train, *arguments, num_ranks=num_ranks)
    weights, metrics = results[0]
    assert list(weights) == list(expected)
    differences = {name: float(np.abs(weights[name] - expected[name]).max()) for name in expected}
    assert max(differences.values()) < 1e-5, differences
    means = np.reshape(norms, (NUM_UPDATES, optimizer_steps)).mean(axis=1)
    np.testing.assert_allclose([update["learner/gradient_norm"] for update in metrics], means, rtol=1e-4)
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
        loss=LossConfig(),
        zero_stage=zero_stage,
    )


@pytest.mark.parametrize(
    ("zero_stage", "num_ranks", "loss"),
    [
        (0, 1, LossConfig()),
        (0, 2, LossConfig(denominator="sequence_mean")),
        (1, 2, LossConfig()),
        (2, 2, LossConfig(kl_coefficient=0.1, denominator="sequence_mean")),
        (3, 2, LossConfig(denominator="constant", constant_length=24)),
    ],
)
def test_a_batch_that_arrives_in_portions_equals_the_plain_loop(
    tied: Fixture, zero_stage: int, num_ranks: int, loss: LossConfig
) -> None:
    arguments: dict[str, Any] = {"num_ranks": num_ranks, "tokens_per_microbatch": 100, "loss": loss}
    whole = check_against_reference(tied, **arguments, zero_stage=zero_stage)
    portions = check_against_reference(tied, **arguments, zero_stage=zero_stage, num_portions=3)
    for one, other in zip(portions, whole, strict=True):
        for name in ("loss", "num_tokens", "num_loss_tokens", "num_sequences", "entropy_nats", "ratio_mean"):
            assert one[f"learner/{name}"] == pytest.approx(other[f"learner/{name}"], rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_kl_entropy_and_sequence_mean_equal_the_plain_loop(untied: Fixture, zero_stage: int) -> None:
    loss = LossConfig(
        options={"clip_high": 0.3}, kl_coefficient=0.1, entropy_coefficient=0.05, denominator="sequence_mean"
    )
    metrics = check_against_reference(untied, num_ranks=2, tokens_per_microbatch=100, loss=loss, zero_stage=zero_stage)
    assert metrics[0]["learner/reference_kl_nats"] == pytest.approx(0.0, abs=1e-6)
    assert metrics[-1]["learner/reference_kl_nats"] > 1e-5


@pytest.mark.parametrize(("zero_stage", "num_ranks"), [(0, 1), (2, 2), (3, 2)])
def test_several_optimizer_steps_on_one_batch_equal_the_plain_loop(
    tied: Fixture, zero_stage: int, num_ranks: int
) -> None:
    metrics = check_against_reference(
        tied,
        num_ranks=num_ranks,
        tokens_per_microbatch=100,
        loss=LossConfig(),
        optimizer_steps=4,
        zero_stage=zero_stage,
    )
    assert metrics[0]["learner/num_sequences"] == 16
    assert metrics[0]["learner/learning_rate"] == pytest.approx(0.5e-3), "step 4 of 8 in warm-up"


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(name="gspo", options={"clip_low": 0.2, "clip_high": 0.3}, denominator="sequence_mean"),
        LossConfig(name="cispo", options={"clip_high": 0.5}),
        LossConfig(denominator="constant", constant_length=24),
    ],
    ids=["gspo", "cispo", "constant"],
)
def test_other_losses_equal_the_plain_loop(tied: Fixture, loss: LossConfig) -> None:
    check_against_reference(tied, num_ranks=2, tokens_per_microbatch=100, loss=loss, optimizer_steps=2, zero_stage=2)


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
        loss=LossConfig(),
        zero_stage=zero_stage,
        **changes,
    )


def test_the_reference_moves_far_beyond_the_tolerance(tied: Fixture) -> None:
    initial = Qwen2ForCausalLM.from_pretrained(tied.model_path, dtype=torch.float32)
    expected, _ = tied.reference(LossConfig())
    moved = np.concatenate(
        [np.abs(expected[name] - parameter.detach().numpy()).ravel() for name, parameter in initial.named_parameters()]
    )
    assert np.median(moved) > 1e-3
