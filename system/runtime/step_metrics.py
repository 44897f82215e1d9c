"""What one update's groups say in numbers. Names are declared in system/metrics.py."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from system.algorithms.rewards import VERIFIER
from system.algorithms.text_statistics import distinct_n, repetition_n
from system.data.samples import ScoredSamples, staleness
from system.metrics import MetricSet
from system.records import TrainingBatch
from system.runtime.group_scoring import scored_by


def add_group_metrics(metrics: MetricSet, scored: Sequence[ScoredSamples], *, policy_version: int) -> None:
    """Rewards, accuracy, lengths, repetition and staleness of the groups of one update."""
    for item in scored:
        values = item.rewards.values[item.rewards.valid]
        if len(values):
            metrics.add("reward/mean", float(values.mean()), weight=len(values))
            metrics.add("reward/std", float(values.std()))
            metrics.add("reward/zero_spread_fraction", float(np.ptp(values) == 0))
        _add_completion_metrics(metrics, item)
        _add_belief_metrics(metrics, item)
    invalid = Counter(
        term.reason for item in scored for row in item.group.rewards for term in row if term.status == "invalid"
    )
    metrics.add("reward/num_invalid", sum(int((~item.rewards.valid).sum()) for item in scored))
    for reason, count in invalid.items():
        metrics.add(f"reward/invalid_{reason}", count)
    for item in scored:
        for version in scored_by(item.group):
            metrics.add("scorer/lag_mean_versions", policy_version - version)
            metrics.add("scorer/lag_max_versions", policy_version - version)
    behind = staleness([item.group for item in scored], policy_version=policy_version)
    for versions in behind:
        metrics.add("staleness/mean_versions", versions)
        metrics.add("staleness/max_versions", versions)
    token_ids = [completion.token_ids for item in scored for completion in item.group.completions]
    metrics.add("completion/distinct_2", distinct_n(token_ids, n=2))
    metrics.add("completion/repetition_4", repetition_n(token_ids, n=4))


def _add_completion_metrics(metrics: MetricSet, item: ScoredSamples) -> None:
    for completion, row, advantage in zip(item.group.completions, item.group.rewards, item.advantages, strict=True):
        num_tokens = len(completion.token_ids)
        metrics.add("completion/length_mean_tokens", num_tokens)
        metrics.add("completion/length_max_tokens", num_tokens)
        metrics.add("completion/truncated_fraction", float(completion.finish_reason == "length"))
        if num_tokens:
            metrics.add("advantage/mean_abs", float(np.abs(advantage).mean()), weight=num_tokens)
        for term in row:
            metrics.add(f"reward/{term.scorer}_seconds", term.seconds)
            if term.status == "ok":
                metrics.add(f"reward/{term.scorer}_mean", term.value)
                if term.scorer == VERIFIER:
                    metrics.add("train/accuracy", term.value)


def _add_belief_metrics(metrics: MetricSet, item: ScoredSamples) -> None:
    for belief, trace in zip(item.beliefs, item.group.belief_traces, strict=True):
        metrics.add("belief/num_hypotheses_mean", len(trace.outcomes))
        metrics.add("belief/num_steps_mean", len(trace.step_ends))
        metrics.add("belief/seconds", trace.seconds)
        metrics.add("belief/reference_weight_mean", float(belief.posterior[-1, 0]))
        metrics.add("belief/reference_probability_mean", float(np.exp(trace.answer_logprobs[-1, 0])))
        for value in belief.step_values:
            metrics.add("belief/step_value_mean", float(value))


def add_batch_metrics(metrics: MetricSet, batch: TrainingBatch, *, num_groups: int) -> None:
    metrics.add("batch/num_groups", num_groups)
    metrics.add("batch/num_sequences", batch.num_sequences)
    metrics.add("batch/num_loss_tokens", batch.num_loss_tokens)
    metrics.add("batch/num_micro_batches", len(batch.micro_batches[0]))
