"""Credit and the packed batch of a recorded step, computed again from what they were computed from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from system.algorithms.base import Algorithm, GroupCredit
from system.commands.replay.findings import Finding, NotComputed, Pair, Tolerance, compare, pairs_of_records
from system.config.algorithms import evidence_of
from system.config.schema import Config
from system.data.samples import make_batch_samples
from system.data.step_files import RecordedStep
from system.records import TrainingBatch
from system.runtime.batch_preparation import pack_samples

_CREDIT_TOLERANCE = Tolerance(absolute=1e-6, relative=1e-5)  # sums in another order, on another processor


def credit_again(
    step: RecordedStep, *, algorithm: Algorithm, config: Config
) -> tuple[list[Finding], list[NotComputed]]:
    """Rewards and advantages from the recorded terms."""
    evidence = evidence_of(config.algorithm)
    if evidence is not None and evidence.record is None:
        reason = f"the evidence of algorithm.name={config.algorithm.name} is not recorded (Evidence.record)"
        return [], [NotComputed(what="advantages", reason=reason)]
    again = algorithm.credit(step.groups).groups
    parts = {
        "reward of a completion": ("rewards", _CREDIT_TOLERANCE),
        "valid completions": ("valid", Tolerance()),
        "advantages": ("advantages", _CREDIT_TOLERANCE),
        "tokens in the loss": ("in_loss", Tolerance()),
    }
    return [
        compare(what, _credit_pairs(step, again, name=name), tolerance=tolerance)
        for what, (name, tolerance) in parts.items()
    ], []


def packing_again(step: RecordedStep, *, config: Config) -> tuple[list[Finding], list[NotComputed]]:
    """The loss inputs of every rank from the recorded credit; equal to the last bit."""
    if config.batch.portions > 1:
        reason = f"batch.portions={config.batch.portions}: which groups came first is not recorded"
        return [], [NotComputed(what="packed batch", reason=reason)]
    again = pack_samples(make_batch_samples(step.groups, credit=step.credit), config=config)
    return [compare("packed batch", _batch_pairs(step.batch, again), tolerance=Tolerance())], []


def _credit_pairs(step: RecordedStep, again: tuple[GroupCredit, ...], *, name: str) -> Iterator[Pair]:
    for scored, old, new in zip(step.groups, step.credit, again, strict=True):
        recorded, computed = getattr(old, name), getattr(new, name)
        if not isinstance(recorded, tuple):
            is_valid = old.valid | (name == "valid")  # a reward says nothing where it is not valid
            yield Pair(
                place=f"group {scored.group_id}, completion",
                recorded=np.where(is_valid, recorded, 0.0),
                again=np.where(is_valid, computed, 0.0),
            )
            continue
        for index, (values, others) in enumerate(zip(recorded, computed, strict=True)):
            yield Pair(place=f"group {scored.group_id}, completion {index}, token", recorded=values, again=others)


def _batch_pairs(recorded: TrainingBatch, again: TrainingBatch) -> Iterator[Pair]:
    yield Pair(place="micro-batches by rank and optimizer step", recorded=_layout(recorded), again=_layout(again))
    for rank, (steps, others) in enumerate(zip(recorded.steps_by_rank, again.steps_by_rank, strict=False)):
        for number, (step, other) in enumerate(zip(steps, others, strict=False)):
            place = f"rank {rank}, optimizer step {number}"
            for name in ("num_loss_tokens", "num_sequences"):
                yield Pair(place=f"{place}, {name}", recorded=getattr(step, name), again=getattr(other, name))
            for index, (one, two) in enumerate(zip(step.micro_batches, other.micro_batches, strict=False)):
                yield from pairs_of_records(one, two, place=f"{place}, micro-batch {index}")


def _layout(batch: TrainingBatch) -> str:
    return str([[len(step.micro_batches) for step in steps] for steps in batch.steps_by_rank])
