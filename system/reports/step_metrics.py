"""What one update's groups say in numbers. Names are declared in system/reports/metrics.py."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from system.algorithms.base import Credit, GroupCredit
from system.algorithms.rewards import VERIFIER
from system.data.samples import staleness
from system.metrics import MetricSet
from system.numerics.text_statistics import count_reflection_words, distinct_n, repetition_n
from system.records import ScoredGroup, TrainingBatch
from system.reports.metrics import UNKNOWN_TOKENS
from system.runtime.group_scoring import scored_by


def add_group_metrics(
    metrics: MetricSet, groups: Sequence[ScoredGroup], *, credit: Credit, policy_version: int
) -> None:
    """Rewards, accuracy, lengths, repetition and staleness of the groups of one update."""
    for group, own in zip(groups, credit.groups, strict=True):
        values = own.rewards[own.valid]
        if len(values):
            metrics.add("reward/mean", float(values.mean()), weight=len(values))
            metrics.add("reward/std", float(values.std()))
            metrics.add("reward/zero_spread_fraction", float(np.ptp(values) == 0))
        _add_trajectory_metrics(metrics, group, credit=own)
    invalid = Counter(
        term.reason for group in groups for row in group.terms for term in row if term.status == "invalid"
    )
    metrics.add("reward/num_invalid", sum(int((~own.valid).sum()) for own in credit.groups))
    for reason, count in invalid.items():
        metrics.add(f"reward/invalid_{reason}", count)
    for group in groups:
        for version in scored_by(group):
            metrics.add("scorer/lag_mean_versions", policy_version - version)
            metrics.add("scorer/lag_max_versions", policy_version - version)
    behind = staleness(groups, policy_version=policy_version)
    for versions in behind:
        metrics.add("staleness/mean_versions", versions)
        metrics.add("staleness/max_versions", versions)
    token_ids = [trajectory.sampled_token_ids for group in groups for trajectory in group.group.trajectories]
    metrics.add("completion/distinct_2", distinct_n(token_ids, n=2))
    metrics.add("completion/repetition_4", repetition_n(token_ids, n=4))


def _add_trajectory_metrics(metrics: MetricSet, scored: ScoredGroup, *, credit: GroupCredit) -> None:
    members = zip(scored.group.trajectories, scored.terms, credit.advantages, strict=True)
    for trajectory, row, advantage in members:
        num_tokens = trajectory.num_sampled
        metrics.add("completion/length_mean_tokens", num_tokens)
        metrics.add("completion/length_max_tokens", num_tokens)
        metrics.add("completion/truncated_fraction", float(trajectory.finish_reason == "length"))
        metrics.add("completion/reflection_words_mean", count_reflection_words(trajectory.text))
        sampled_advantage = advantage[trajectory.is_sampled]
        if num_tokens:
            metrics.add("advantage/mean_abs", float(np.abs(sampled_advantage).mean()), weight=num_tokens)
        for term in row:
            metrics.add(f"reward/{term.scorer}_seconds", term.seconds)
            if term.status == "ok":
                metrics.add(f"reward/{term.scorer}_mean", term.value)
                if term.scorer == VERIFIER:
                    metrics.add("train/accuracy", term.value)
                    if num_tokens:
                        kind = "right" if term.value == 1.0 else "wrong"
                        metrics.add(f"advantage/{kind}_mean", float(sampled_advantage.mean()))


def add_unknown_tokens(metrics: MetricSet, groups: Sequence[ScoredGroup], *, num_known_tokens: int) -> None:
    """The share of sampled ids that the tokenizer, with `num_known_tokens` entries, has no text for."""
    for scored in groups:
        for trajectory in scored.group.trajectories:
            if trajectory.num_sampled:
                is_unknown = trajectory.sampled_token_ids >= num_known_tokens
                metrics.add(UNKNOWN_TOKENS, float(is_unknown.mean()), weight=trajectory.num_sampled)


def add_batch_metrics(metrics: MetricSet, batch: TrainingBatch, *, num_groups: int) -> None:
    metrics.add("batch/num_groups", num_groups)
    metrics.add("batch/num_sequences", batch.num_sequences)
    metrics.add("batch/num_loss_tokens", batch.num_loss_tokens)
    metrics.add("batch/num_micro_batches", sum(len(step.micro_batches) for step in batch.steps_by_rank[0]))
