"""What one update's groups say in numbers. Names are declared in system/reports/metrics.py."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from system.algorithms.rewards import VERIFIER
from system.data.samples import ScoredSamples, staleness
from system.metrics import MetricSet
from system.numerics.text_statistics import count_reflection_words, distinct_n, repetition_n
from system.records import TrainingBatch
from system.reports.metrics import BELIEF_PHASES, BELIEF_VALUE_STEPS
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
        term.reason for item in scored for row in item.scored.terms for term in row if term.status == "invalid"
    )
    metrics.add("reward/num_invalid", sum(int((~item.rewards.valid).sum()) for item in scored))
    for reason, count in invalid.items():
        metrics.add(f"reward/invalid_{reason}", count)
    for item in scored:
        for version in scored_by(item.scored):
            metrics.add("scorer/lag_mean_versions", policy_version - version)
            metrics.add("scorer/lag_max_versions", policy_version - version)
    behind = staleness([item.scored for item in scored], policy_version=policy_version)
    for versions in behind:
        metrics.add("staleness/mean_versions", versions)
        metrics.add("staleness/max_versions", versions)
    token_ids = [trajectory.sampled_token_ids for item in scored for trajectory in item.scored.group.trajectories]
    metrics.add("completion/distinct_2", distinct_n(token_ids, n=2))
    metrics.add("completion/repetition_4", repetition_n(token_ids, n=4))


def _add_completion_metrics(metrics: MetricSet, item: ScoredSamples) -> None:
    group, terms = item.scored.group, item.scored.terms
    for trajectory, row, advantage in zip(group.trajectories, terms, item.advantages, strict=True):
        num_tokens = trajectory.num_sampled
        metrics.add("completion/length_mean_tokens", num_tokens)
        metrics.add("completion/length_max_tokens", num_tokens)
        metrics.add("completion/truncated_fraction", float(trajectory.finish_reason == "length"))
        metrics.add("completion/reflection_words_mean", count_reflection_words(trajectory.text))
        if num_tokens:
            metrics.add("advantage/mean_abs", float(np.abs(advantage[trajectory.is_sampled]).mean()), weight=num_tokens)
        for term in row:
            metrics.add(f"reward/{term.scorer}_seconds", term.seconds)
            if term.status == "ok":
                metrics.add(f"reward/{term.scorer}_mean", term.value)
                if term.scorer == VERIFIER:
                    metrics.add("train/accuracy", term.value)
                    if num_tokens:
                        kind = "right" if term.value == 1.0 else "wrong"
                        metrics.add(f"advantage/{kind}_mean", float(advantage[trajectory.is_sampled].mean()))


def add_belief_shares(metrics: MetricSet, *, step_seconds: float) -> None:
    """Each phase of the beliefs as a share of the update's wall time, once both are complete."""
    for phase in BELIEF_PHASES:
        seconds = metrics.value(f"belief/{phase}_seconds")
        if seconds is not None:
            metrics.add(f"belief/{phase}_share", seconds / step_seconds)


def _add_belief_metrics(metrics: MetricSet, item: ScoredSamples) -> None:
    if item.scored.hypotheses is not None:
        metrics.add("belief/hypotheses_seconds", item.scored.hypotheses.seconds)
    for belief, trace in zip(item.beliefs, item.scored.belief_traces, strict=True):
        metrics.add("belief/num_hypotheses_mean", len(trace.outcomes))
        metrics.add("belief/num_steps_mean", len(trace.step_ends))
        metrics.add("belief/trees_seconds", trace.trees_seconds)
        metrics.add("belief/forward_seconds", trace.forward_seconds)
        metrics.add("belief/reference_weight_mean", float(belief.posterior[-1, 0]))
        metrics.add("belief/reference_probability_mean", float(np.exp(trace.answer_logprobs[-1, 0])))
        for step, value in enumerate(belief.step_values):
            metrics.add("belief/step_value_mean", float(value))
            if step < BELIEF_VALUE_STEPS:
                metrics.add(f"belief/value_at_step_{step}", float(value))


def add_batch_metrics(metrics: MetricSet, batch: TrainingBatch, *, num_groups: int) -> None:
    metrics.add("batch/num_groups", num_groups)
    metrics.add("batch/num_sequences", batch.num_sequences)
    metrics.add("batch/num_loss_tokens", batch.num_loss_tokens)
    metrics.add("batch/num_micro_batches", sum(len(step.micro_batches) for step in batch.steps_by_rank[0]))
