"""What the beliefs of a batch say in numbers."""

from collections.abc import Sequence

import numpy as np

from system.algorithms.barl.belief import Belief
from system.algorithms.barl.records import BeliefTrace
from system.metrics import MetricDefinition, MetricSet

_VALUE_STEPS = 8  # credit/value_at_step_<t> for t below

_MEANS = {
    "belief/step_value_mean": "Value of a step under the belief before it, mean over steps.",
    "belief/num_steps_mean": "Steps per completion.",
    "belief/num_hypotheses_mean": "Hypotheses per group, the reference answer included.",
    "belief/reference_weight_mean": "Weight of the reference answer after the last step.",
    "belief/reference_probability_mean": "Probability of the reference answer after the last step.",
    "credit/value_at_step_<t>": "Value of step t (from 0), over the completions that have so many.",
}
_SECONDS = {
    "credit/hypotheses_seconds": "Busy time of finding hypotheses in the reward workers.",
    "credit/trees_seconds": "Busy time of cutting steps and building answer trees in the replicas.",
    "credit/forward_seconds": "Busy time of the forward passes over answer trees in the replicas.",
    "credit/advantages_seconds": "Time of beliefs and advantages in the driver.",
}
BELIEF_METRICS = (
    *(MetricDefinition(name=name, description=text) for name, text in _MEANS.items()),
    *(MetricDefinition(name=name, description=text, reduction="sum") for name, text in _SECONDS.items()),
)


def add_belief_metrics(metrics: MetricSet, traces: Sequence[BeliefTrace], *, beliefs: Sequence[Belief]) -> None:
    """The metrics of one group."""
    metrics.add("credit/hypotheses_seconds", traces[0].hypotheses.seconds)
    for trace, belief in zip(traces, beliefs, strict=True):
        metrics.add("belief/num_hypotheses_mean", len(trace.hypotheses.answers))
        metrics.add("belief/num_steps_mean", len(trace.step_ends))
        metrics.add("credit/trees_seconds", trace.trees_seconds)
        metrics.add("credit/forward_seconds", trace.forward_seconds)
        metrics.add("belief/reference_weight_mean", float(belief.posterior[-1, 0]))
        metrics.add("belief/reference_probability_mean", float(np.exp(trace.answer_logprobs[-1, 0])))
        for step, value in enumerate(belief.step_values):
            metrics.add("belief/step_value_mean", float(value))
            if step < _VALUE_STEPS:
                metrics.add(f"credit/value_at_step_{step}", float(value))
