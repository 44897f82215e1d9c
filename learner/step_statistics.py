"""What the optimizer steps of one batch report: sums over loss tokens, gathered from all ranks by one collective.

The mismatch metrics compare the learner with the policy that wrote the tokens, separately for sequences written
by the current version (`fresh`) and by older ones (`stale`): mismatch on fresh tokens comes from the engine's
arithmetic or from wrong weights, what stale tokens show beyond it comes from staleness.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from system.losses.base import LossOutputs
from system.metrics import MetricDefinition
from system.records import Metric

LEARNER_METRICS: tuple[MetricDefinition, ...] = (
    MetricDefinition(name="learner/loss", description="Loss with its global denominator; mean of the steps."),
    MetricDefinition(name="learner/reference_kl_nats", description="k3 KL to the frozen reference, per loss token."),
    MetricDefinition(name="learner/entropy_nats", description="Entropy of the policy, per loss token."),
    MetricDefinition(name="learner/self_certainty_nats", description="KL(U || p) of the policy, per loss token."),
    MetricDefinition(name="learner/mismatch_kl_nats", description="k3 KL(behaviour || learner), per loss token."),
    MetricDefinition(
        name="learner/mismatch_kl_fresh_nats",
        description="The same over sequences of the current version: engine mismatch, not staleness.",
    ),
    MetricDefinition(
        name="learner/mismatch_kl_stale_nats", description="The same over sequences of older versions: drift."
    ),
    MetricDefinition(
        name="learner/stale_tokens_fraction", description="Loss tokens in sequences that an older version wrote."
    ),
    MetricDefinition(
        name="learner/staleness_max_versions",
        description="Largest policy_version - min_policy_version.",
        reduction="max",
    ),
    MetricDefinition(
        name="learner/ratio_mean", description="Mean of learner / behaviour probability; 1 in expectation."
    ),
    MetricDefinition(name="learner/ratio_max", description="Largest learner / behaviour ratio.", reduction="max"),
    MetricDefinition(name="learner/importance_weight_mean", description="Mean truncated importance weight."),
    MetricDefinition(
        name="learner/importance_weight_max", description="Largest importance weight applied.", reduction="max"
    ),
    MetricDefinition(name="learner/truncated_fraction", description="Loss tokens whose ratio exceeds the cap."),
    MetricDefinition(name="learner/clip_fraction", description="Loss tokens without gradient because of the clip."),
    MetricDefinition(
        name="learner/gradient_norm", description="Global gradient norm before clipping; mean of the steps taken."
    ),
    MetricDefinition(
        name="learner/skipped_steps",
        description="Optimizer steps since the last version that were not taken: the gradient was NaN or infinite.",
        reduction="sum",
    ),
    MetricDefinition(name="learner/learning_rate", description="Learning rate of the last step.", reduction="last"),
    MetricDefinition(name="learner/num_tokens", description="Packed tokens of the batch.", reduction="sum"),
    MetricDefinition(name="learner/num_loss_tokens", description="Loss tokens of the batch.", reduction="sum"),
    MetricDefinition(name="learner/num_sequences", description="Sequences with loss of the batch.", reduction="sum"),
    MetricDefinition(name="learner/num_microbatches", description="Micro-batches of one rank.", reduction="sum"),
    MetricDefinition(name="learner/forward_seconds", description="Forward passes, slowest rank.", reduction="sum"),
    MetricDefinition(name="learner/backward_seconds", description="Backward passes, slowest rank.", reduction="sum"),
    MetricDefinition(
        name="learner/optimizer_seconds", description="Clipping and AdamW, slowest rank.", reduction="sum"
    ),
    MetricDefinition(name="learner/step_seconds", description="The whole batch, slowest rank.", reduction="sum"),
    MetricDefinition(name="learner/tokens_per_second", description="Packed tokens over step seconds."),
)

_SUMS = (
    "loss",
    "tokens",
    "loss_tokens",
    "reference_kl",
    "entropy",
    "self_certainty",
    "mismatch_kl",
    "mismatch_kl_stale",
    "stale_tokens",
    "ratio",
    "importance_weight",
    "truncated",
    "clipped",
)
_MAXIMA = (
    "ratio",
    "importance_weight",
    "staleness",
    "forward_seconds",
    "backward_seconds",
    "optimizer_seconds",
    "step_seconds",
)


class StepClock:
    """Seconds of each phase of a batch, from its construction on; `synchronise` waits for the device."""

    def __init__(self, synchronise: Callable[[], None]) -> None:
        self._synchronise = synchronise
        self._started = time.perf_counter()
        self._seconds = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._synchronise()
        self._seconds[name] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        """Of the three phases, and of the whole `step` up to now."""
        return {**self._seconds, "step": time.perf_counter() - self._started}


class StepStatistics:
    """Collects one rank's micro-batches; `reduce` turns all ranks' rows into metrics."""

    def __init__(self, *, device: torch.device) -> None:
        self._sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self._maxima = torch.zeros(len(_MAXIMA), dtype=torch.float64, device=device)

    def add(
        self,
        outputs: LossOutputs,
        *,
        loss: Tensor,
        num_tokens: int,
        logprobs: Tensor,
        rollout_logprobs: Tensor,
        entropy: Tensor,
        self_certainty: Tensor,
        reference_kl: Tensor | None,
        staleness: Tensor,
    ) -> None:
        """Adds one micro-batch: per-token tensors [M] over its loss tokens; `staleness` int[M], in versions."""
        if len(logprobs) == 0:
            self._sums[_SUMS.index("tokens")] += num_tokens
            return
        difference = (logprobs - rollout_logprobs).detach()
        mismatch_kl = difference.expm1() - difference
        is_stale = staleness > 0
        values: Mapping[str, Tensor | float] = {
            "loss": loss.detach(),
            "tokens": num_tokens,
            "loss_tokens": len(logprobs),
            "reference_kl": 0.0 if reference_kl is None else reference_kl.detach(),
            "entropy": entropy.detach(),
            "self_certainty": self_certainty,
            "mismatch_kl": mismatch_kl,
            "mismatch_kl_stale": mismatch_kl * is_stale,
            "stale_tokens": is_stale,
            "ratio": outputs.ratio,
            "importance_weight": outputs.importance_weight,
            "truncated": outputs.is_truncated,
            "clipped": outputs.is_clipped,
        }
        self._sums += torch.stack(
            [torch.as_tensor(values[name], dtype=torch.float64, device=self._sums.device).sum() for name in _SUMS]
        )
        maxima = [outputs.ratio.max(), outputs.importance_weight.max(), staleness.max()]
        self._maxima[:3] = torch.maximum(self._maxima[:3], torch.stack([value.double() for value in maxima]))

    def row(self, *, seconds: Mapping[str, float]) -> Tensor:
        """This rank's share, float64 [K]; `seconds` has forward, backward, optimizer and step."""
        for name, value in seconds.items():
            self._maxima[_MAXIMA.index(f"{name}_seconds")] = value
        return torch.cat([self._sums, self._maxima])


def step_metrics(
    rows: Tensor,
    *,
    loss_divisor: float,
    learning_rate: float,
    gradient_norms: Sequence[float | None],
    num_skipped: int,
    num_sequences: int,
    num_microbatches: int,
    has_reference: bool,
) -> tuple[Metric, ...]:
    """Metrics of the whole batch from all ranks' rows [num_ranks, K]; token means over the global loss tokens.

    `loss_divisor`: optimizer steps, times the denominator that the losses do not contain yet. `gradient_norms` by
    optimizer step, None where it was skipped; `num_skipped` counts batches before that were skipped whole as well.
    What is not finite then, is left out.
    """
    sums = dict(zip(_SUMS, rows[:, : len(_SUMS)].sum(dim=0).tolist(), strict=True))
    maxima = dict(zip(_MAXIMA, rows[:, len(_SUMS) :].amax(dim=0).tolist(), strict=True))
    num_tokens = sums["loss_tokens"]
    norms = [norm for norm in gradient_norms if norm is not None]
    values = {
        "loss": sums["loss"] / loss_divisor,
        "entropy_nats": sums["entropy"] / num_tokens,
        "self_certainty_nats": sums["self_certainty"] / num_tokens,
        "mismatch_kl_nats": sums["mismatch_kl"] / num_tokens,
        "stale_tokens_fraction": sums["stale_tokens"] / num_tokens,
        "staleness_max_versions": maxima["staleness"],
        "ratio_mean": sums["ratio"] / num_tokens,
        "ratio_max": maxima["ratio"],
        "importance_weight_mean": sums["importance_weight"] / num_tokens,
        "importance_weight_max": maxima["importance_weight"],
        "truncated_fraction": sums["truncated"] / num_tokens,
        "clip_fraction": sums["clipped"] / num_tokens,
        "gradient_norm": sum(norms) / len(norms) if norms else math.nan,
        "skipped_steps": num_skipped,
        "learning_rate": learning_rate,
        "num_tokens": sums["tokens"],
        "num_loss_tokens": num_tokens,
        "num_sequences": num_sequences,
        "num_microbatches": num_microbatches,
        "tokens_per_second": sums["tokens"] / maxima["step_seconds"],
    }
    values.update({name: value for name, value in maxima.items() if name.endswith("_seconds")})
    if has_reference:
        values["reference_kl_nats"] = sums["reference_kl"] / num_tokens
    if sums["stale_tokens"] > 0:
        values["mismatch_kl_stale_nats"] = sums["mismatch_kl_stale"] / sums["stale_tokens"]
    if num_tokens > sums["stale_tokens"]:
        fresh = sums["mismatch_kl"] - sums["mismatch_kl_stale"]
        values["mismatch_kl_fresh_nats"] = fresh / (num_tokens - sums["stale_tokens"])
    return tuple(
        Metric(name=f"learner/{name}", value=float(value)) for name, value in values.items() if math.isfinite(value)
    )
