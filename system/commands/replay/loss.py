"""The learner's metrics of a recorded step, computed again: forward and backward on this machine, without an update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch

from learner.packed_loss import PackedInputs, PackedLoss
from learner.schedule import learning_rate_at
from learner.step_statistics import StepClock, StepStatistics, step_metrics
from system.commands.replay.findings import Finding, NotComputed, Pair, Tolerance, compare, unrecorded
from system.commands.replay.weights import WeightsFinder, tolerance_of
from system.config.machine import model_folder
from system.config.schema import Config, Device, ModelConfig
from system.data.step_files import RecordedStep
from system.errors import CredenceError, NotFiniteError
from system.numerics.policy_model import PolicyModel, load_policy_model
from system.records import Metric, StepResult
from system.weights.digest import torch_dtype

# of the clock, or of what came before the step
_NOT_COMPARED = ("_seconds", "_per_second", "/skipped_steps")
_GRADIENT_NORM, _NOT_FINITE = "learner/gradient_norm", "not finite"  # the learner leaves such a metric out
_COUNTS = ("learner/learning_rate", "learner/staleness_max_versions", "learner/stale_tokens_fraction")
_EXACT = Tolerance(relative=1e-12)


def metrics_again(
    step: RecordedStep, result: StepResult | None, *, config: Config, finder: WeightsFinder, device: Device | None
) -> list[Finding] | NotComputed:
    """One line for each metric of the learner; without a result the metrics alone.

    Raises NotFiniteError, CredenceError for a model that cannot be loaded.
    """
    if any(len(steps) > 1 for steps in step.batch.steps_by_rank):
        return NotComputed(
            what="learner metrics",
            reason=f"batch.optimizer_steps={config.batch.optimizer_steps}: the weights change within the batch",
        )
    weights = finder.find(step.policy_version)
    if isinstance(weights, str):
        return NotComputed(what="learner metrics", reason=weights)
    where = torch.device(device or config.learner.device)
    model = _load(weights.model(config.model), config=config, device=where)
    try:
        metrics = _metrics(step, model=model, config=config, device=where)
    except NotFiniteError as error:
        return NotComputed(what="learner metrics", reason=str(error))
    again = {metric.name: metric.value for metric in metrics if not metric.name.endswith(_NOT_COMPARED)}
    by_token = _against_the_engine(step, model=model, config=config, device=where)
    if result is None:
        return [*(unrecorded(name, again=value) for name, value in again.items()), by_token]
    recorded = {metric.name: metric.value for metric in result.metrics if not metric.name.endswith(_NOT_COMPARED)}
    return [
        *_compared(recorded, again, config=config),
        by_token,
    ]


def _compared(recorded: Mapping[str, float], again: Mapping[str, float], *, config: Config) -> list[Finding]:
    return [
        compare(
            name,
            [Pair(place="", recorded=recorded.get(name, _NOT_FINITE), again=again.get(name, _NOT_FINITE))],
            tolerance=_EXACT if name in _COUNTS or "/num_" in name else tolerance_of(config.learner.dtype),
        )
        for name in dict.fromkeys([*recorded, _GRADIENT_NORM])
    ]


def _metrics(step: RecordedStep, *, model: PolicyModel, config: Config, device: torch.device) -> Sequence[Metric]:
    """Of all ranks, one after the other. Raises NotFiniteError."""
    reference = None
    if config.loss.kl_coefficient > 0:
        reference = _load(config.model, config=config, device=device).requires_grad_(False)
    loss = PackedLoss(
        config.loss,
        model=model,
        reference=reference,
        temperature=config.rollout.temperature,
        device=device,
        name="the model",
    )
    rows = []
    for (optimizer_step,) in step.batch.steps_by_rank:
        statistics, clock = StepStatistics(device=device), StepClock(lambda: None)
        for micro_batch in optimizer_step.micro_batches:
            share = loss.share_of(
                micro_batch,
                denominators=(optimizer_step.num_loss_tokens, optimizer_step.num_sequences),
                policy_version=step.policy_version,
                statistics=statistics,
            )
            share.backward()
        rows.append(statistics.row(seconds=clock.seconds()))
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    first = [steps[0] for steps in step.batch.steps_by_rank]
    return step_metrics(
        torch.stack(rows),
        loss_divisor=1.0,
        learning_rate=_learning_rate(step.policy_version, config=config),
        gradient_norms=[float(torch.nn.utils.get_total_norm(gradients))],
        num_skipped=0,
        num_sequences=first[0].num_sequences,
        num_microbatches=len(first[0].micro_batches),
        has_reference=reference is not None,
    )


def _against_the_engine(step: RecordedStep, *, model: PolicyModel, config: Config, device: torch.device) -> Finding:
    """Where the weights that were trained and the engine that wrote the tokens disagree most; not bounded here."""
    trajectories = {
        trajectory.token_ids.tobytes(): f"group {scored.group_id}, completion {trajectory.index}, token"
        for scored in step.groups
        for trajectory in scored.group.trajectories
    }
    pairs = []
    for steps in step.batch.steps_by_rank:
        for micro_batch in steps[0].micro_batches:
            with torch.no_grad():
                logprobs = PackedInputs(micro_batch, device=device).forward(
                    model, temperature=config.rollout.temperature
                )
            learner = micro_batch.rollout_logprobs.copy()
            learner[micro_batch.loss_mask] = logprobs.logprobs.cpu().numpy()
            for start, end in pairwise(micro_batch.sequence_starts.tolist()):
                place = trajectories.get(micro_batch.token_ids[start:end].tobytes(), f"packed token {start} +")
                recorded = micro_batch.rollout_logprobs[start:end]
                pairs.append(Pair(place=place, recorded=recorded, again=learner[start:end]))
    return compare("engine against learner", pairs, tolerance=Tolerance(absolute=math.inf))


def _learning_rate(policy_version: int, *, config: Config) -> float:
    learner = config.learner
    return learning_rate_at(
        policy_version,
        num_steps=config.run.num_updates,
        peak=learner.learning_rate,
        warmup_ratio=learner.warmup_ratio,
        final_ratio=learner.final_lr_ratio,
    )


def _load(model: ModelConfig, *, config: Config, device: torch.device) -> PolicyModel:
    try:
        return load_policy_model(
            str(model_folder(model.path) or model.path),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=torch_dtype(config.learner.dtype),
            device=device,
            gradient_checkpointing=config.learner.gradient_checkpointing,
        )
    except OSError as error:
        raise CredenceError(f"{model.path} cannot be loaded: {str(error).splitlines()[0]}") from error
