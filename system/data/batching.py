"""Packs training samples into micro-batches by token budget and deals them to the data-parallel ranks.

Called once for each update by the controller; pure numpy and deterministic.
"""

import heapq
from collections.abc import Sequence

import numpy as np

from system.records import OptimizerStep, PackedMicroBatch, TrainingBatch, TrainingSample


def pack_batch(
    samples: Sequence[TrainingSample],
    *,
    num_ranks: int,
    tokens_per_microbatch: int,
    optimizer_steps: int = 1,
    skip_zero_advantages: bool = False,
) -> TrainingBatch:
    """Packs all samples into micro-batches of at most `tokens_per_microbatch` tokens, m for each rank and step.

    m is the smallest number for which longest-first packing fits, and the same for every rank, because
    each micro-batch may end in a collective. Ranks hold nearly the same number of tokens, and their
    micro-batches run from large to small, so that ranks meet at each collective at about the same time.
    When too few samples are left to give every rank m micro-batches, a rank gets a copy of the shortest
    sample without loss tokens, which adds no gradient.

    `optimizer_steps`: the samples are cut, in their order, into so many steps of about as many samples, each with
    denominators of its own; there are fewer where samples are too few, and a step without a loss token is left out.

    `skip_zero_advantages` leaves out samples whose advantages are all zero: without a KL or entropy term they add
    nothing to the gradient. The denominators still count them, so the gradient is the same.

    Raises ValueError for a sample longer than the budget, arrays of unequal length, a loss on a sequence's first
    token (nothing predicts it), or a batch without any loss token.
    """
    _check_samples(samples, tokens_per_microbatch=tokens_per_microbatch)
    parts = [part for part in _split(samples, num_parts=optimizer_steps) if any(each.loss_mask.any() for each in part)]
    if not parts:
        raise ValueError(f"none of the {len(samples)} samples has a loss token: there is nothing to train on")
    steps = [
        _pack_step(part, num_ranks=num_ranks, capacity=tokens_per_microbatch, skip_zero_advantages=skip_zero_advantages)
        for part in parts
    ]
    return TrainingBatch(
        steps_by_rank=tuple(zip(*steps, strict=True)),
        num_loss_tokens=sum(step[0].num_loss_tokens for step in steps),
        num_sequences=sum(step[0].num_sequences for step in steps),
    )


def pack_portion(
    samples: Sequence[TrainingSample],
    *,
    num_ranks: int,
    tokens_per_microbatch: int,
    skip_zero_advantages: bool = False,
) -> tuple[OptimizerStep, ...]:
    """A part of a batch that is still arriving, by rank; as `pack_batch`, with the counts of this part alone.

    It may be without any loss token. Raises ValueError as `pack_batch` does.
    """
    _check_samples(samples, tokens_per_microbatch=tokens_per_microbatch)
    return tuple(
        _pack_step(
            samples, num_ranks=num_ranks, capacity=tokens_per_microbatch, skip_zero_advantages=skip_zero_advantages
        )
    )


def _split(samples: Sequence[TrainingSample], *, num_parts: int) -> list[Sequence[TrainingSample]]:
    """Runs of samples whose numbers differ by at most 1; fewer runs where samples are fewer."""
    num_parts = min(num_parts, len(samples))
    ends = [len(samples) * (part + 1) // num_parts for part in range(num_parts)]
    return [samples[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _pack_step(
    samples: Sequence[TrainingSample], *, num_ranks: int, capacity: int, skip_zero_advantages: bool
) -> list[OptimizerStep]:
    """One optimizer step, by rank."""
    num_loss_tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
    num_sequences = sum(bool(sample.loss_mask.any()) for sample in samples)
    if skip_zero_advantages:
        samples = _with_advantages(samples, at_least=num_ranks)
    lengths = [len(sample.token_ids) for sample in samples]
    bins = _fill_bins(lengths, num_ranks=num_ranks, capacity=capacity)
    shortest = min(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [
        OptimizerStep(
            micro_batches=tuple(
                _pack([samples[index] for index in bin_]) if bin_ else _pack([_without_loss(samples[shortest])])
                for bin_ in rank
            ),
            num_loss_tokens=num_loss_tokens,
            num_sequences=num_sequences,
        )
        for rank in _deal_bins(bins, lengths=lengths, num_ranks=num_ranks)
    ]


def _with_advantages(samples: Sequence[TrainingSample], *, at_least: int) -> list[TrainingSample]:
    """Samples with a non-zero advantage, in order; the shortest others join while there are fewer than `at_least`."""
    kept = {index for index, sample in enumerate(samples) if sample.advantages.any()}
    shortest_first = sorted(range(len(samples)), key=lambda index: (len(samples[index].token_ids), index))
    for index in shortest_first:
        if len(kept) >= at_least:
            break
        kept.add(index)
    return [samples[index] for index in sorted(kept)]


def _check_samples(samples: Sequence[TrainingSample], *, tokens_per_microbatch: int) -> None:
    for index, sample in enumerate(samples):
        length = len(sample.token_ids)
        if length > tokens_per_microbatch:
            raise ValueError(
                f"sample {index} has {length} tokens, more than batch.tokens_per_microbatch={tokens_per_microbatch}"
            )
        arrays = (sample.loss_mask, sample.rollout_logprobs, sample.advantages)
        if length == 0 or any(array.shape != (length,) for array in arrays):
            raise ValueError(
                f"sample {index}: loss_mask, rollout_logprobs and advantages must have the shape of token_ids "
                f"({length},), got {[array.shape for array in arrays]}"
            )
        if sample.loss_mask[0]:
            raise ValueError(f"sample {index}: the first token has no predecessor that predicts it, so no loss")


def _fill_bins(lengths: Sequence[int], *, num_ranks: int, capacity: int) -> list[list[int]]:
    """Indices of `lengths` in num_ranks * m bins; bins may be empty only where there are too few samples."""
    num_microbatches = max(1, -(-sum(lengths) // (num_ranks * capacity)))
    longest_first = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while True:
        bins: list[list[int]] = [[] for _ in range(num_ranks * num_microbatches)]
        heap = [(0, bin_index) for bin_index in range(len(bins))]  # (tokens, bin), the emptiest first
        largest = 0
        for index in longest_first:
            tokens, bin_index = heapq.heappop(heap)
            bins[bin_index].append(index)
            heapq.heappush(heap, (tokens + lengths[index], bin_index))
            largest = max(largest, tokens + lengths[index])
        if largest <= capacity:
            return bins
        num_microbatches += 1


def _deal_bins(bins: list[list[int]], *, lengths: Sequence[int], num_ranks: int) -> list[list[list[int]]]:
    """Gives every rank the same number of bins and about the same number of tokens, largest bins first."""
    num_microbatches = len(bins) // num_ranks

    def tokens_of(bin_: list[int]) -> int:
        return sum(lengths[index] for index in bin_)

    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    totals = [0] * num_ranks
    largest_first = sorted(range(len(bins)), key=lambda bin_index: (-tokens_of(bins[bin_index]), bin_index))
    for row in range(num_microbatches):
        # One bin for each rank in every row; the rank that lags takes the row's largest.
        row_bins = largest_first[row * num_ranks : (row + 1) * num_ranks]
        for rank, bin_index in zip(sorted(range(num_ranks), key=lambda r: (totals[r], r)), row_bins, strict=True):
            ranks[rank].append(bins[bin_index])
            totals[rank] += tokens_of(bins[bin_index])
    return ranks


def _without_loss(sample: TrainingSample) -> TrainingSample:
    return TrainingSample(
        group_id=sample.group_id,
        token_ids=sample.token_ids,
        loss_mask=np.zeros_like(sample.loss_mask),
        rollout_logprobs=sample.rollout_logprobs,
        advantages=np.zeros_like(sample.advantages),
        min_policy_version=sample.min_policy_version,
    )


def _pack(samples: Sequence[TrainingSample]) -> PackedMicroBatch:
    lengths = [len(sample.token_ids) for sample in samples]
    return PackedMicroBatch(
        token_ids=np.concatenate([sample.token_ids for sample in samples]).astype(np.int32),
        position_ids=np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        sequence_starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        loss_mask=np.concatenate([sample.loss_mask for sample in samples]).astype(np.bool_),
        rollout_logprobs=np.concatenate([sample.rollout_logprobs for sample in samples]).astype(np.float32),
        advantages=np.concatenate([sample.advantages for sample in samples]).astype(np.float32),
        min_policy_versions=np.array([sample.min_policy_version for sample in samples], dtype=np.int32),
    )
