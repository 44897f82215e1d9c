"""Packing loses no token, respects the budget, and gives every rank the same work."""

from itertools import pairwise

import numpy as np
import pytest

from system.data.batching import pack_batch
from system.records import PackedMicroBatch, TrainingBatch, TrainingSample


def make_sample(length: int, *, group_id: int = 0, num_loss_tokens: int | None = None) -> TrainingSample:
    loss_mask = np.zeros(length, dtype=np.bool_)
    num_loss_tokens = length - 1 if num_loss_tokens is None else num_loss_tokens
    loss_mask[length - num_loss_tokens :] = num_loss_tokens > 0
    return TrainingSample(
        group_id=group_id,
        token_ids=np.full(length, group_id, dtype=np.int32),
        loss_mask=loss_mask,
        rollout_logprobs=np.arange(length, dtype=np.float32),
        advantages=np.full(length, group_id, dtype=np.float32),
        min_policy_version=group_id,
    )


def sequences_of(micro_batch: PackedMicroBatch) -> list[tuple[int, int]]:
    """(group_id, length) of each packed sequence."""
    starts = micro_batch.sequence_starts
    return [(int(micro_batch.token_ids[start]), int(end - start)) for start, end in pairwise(starts)]


def micro_batches_of(batch: TrainingBatch, *, step: int = 0) -> list[tuple[PackedMicroBatch, ...]]:
    """[ranks][m] of one optimizer step."""
    return [steps[step].micro_batches for steps in batch.steps_by_rank]


def test_every_sequence_is_packed_once_within_the_budget_on_equally_loaded_ranks() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 120, size=101)
    samples = [make_sample(int(length), group_id=index) for index, length in enumerate(lengths)]
    batch = pack_batch(samples, num_ranks=3, tokens_per_microbatch=600)
    packed = [
        sequence for rank in micro_batches_of(batch) for micro_batch in rank for sequence in sequences_of(micro_batch)
    ]
    assert sorted(packed) == [(index, int(length)) for index, length in enumerate(lengths)]
    (num_microbatches,) = {len(rank) for rank in micro_batches_of(batch)}
    assert num_microbatches <= int(lengths.sum()) // 1800 + 2
    assert all(len(micro_batch.token_ids) <= 600 for rank in micro_batches_of(batch) for micro_batch in rank)
    tokens = [sum(len(micro_batch.token_ids) for micro_batch in rank) for rank in micro_batches_of(batch)]
    assert max(tokens) - min(tokens) <= 120
    assert batch.num_loss_tokens == int(lengths.sum()) - 101
    assert batch.num_sequences == 101


def test_arrays_of_a_sequence_stay_together() -> None:
    batch = pack_batch([make_sample(3, group_id=1), make_sample(5, group_id=2)], num_ranks=1, tokens_per_microbatch=8)
    (micro_batch,) = micro_batches_of(batch)[0]
    assert micro_batch.sequence_starts.tolist() == [0, 5, 8]
    assert micro_batch.token_ids.tolist() == [2, 2, 2, 2, 2, 1, 1, 1]
    assert micro_batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert micro_batch.loss_mask.tolist() == [False, True, True, True, True, False, True, True]
    assert micro_batch.rollout_logprobs.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert micro_batch.advantages.tolist() == [2, 2, 2, 2, 2, 1, 1, 1]
    assert micro_batch.min_policy_versions.tolist() == [2, 1]


def test_packing_is_deterministic() -> None:
    samples = [make_sample(length, group_id=index) for index, length in enumerate([7, 7, 7, 5, 5, 9, 9, 2])]
    first, second = (pack_batch(samples, num_ranks=2, tokens_per_microbatch=12) for _ in range(2))
    for one, other in zip(micro_batches_of(first), micro_batches_of(second), strict=True):
        assert list(map(sequences_of, one)) == list(map(sequences_of, other))


def test_a_rank_left_without_samples_gets_a_copy_without_loss() -> None:
    # Three samples fill a micro-batch each, so rank 0 needs two and rank 1 has only one.
    samples = [make_sample(10, group_id=index) for index in range(3)]
    batch = pack_batch(samples, num_ranks=2, tokens_per_microbatch=10)
    assert [len(rank) for rank in micro_batches_of(batch)] == [2, 2]
    losses = [int(micro_batch.loss_mask.sum()) for rank in micro_batches_of(batch) for micro_batch in rank]
    assert sorted(losses) == [0, 9, 9, 9]
    assert batch.num_loss_tokens == 27
    assert batch.num_sequences == 3


def test_sequences_without_loss_tokens_do_not_count() -> None:
    batch = pack_batch([make_sample(4), make_sample(4, num_loss_tokens=0)], num_ranks=1, tokens_per_microbatch=8)
    assert (batch.num_loss_tokens, batch.num_sequences) == (3, 1)


@pytest.mark.parametrize(
    ("samples", "num_ranks", "message"),
    [
        ([], 1, "nothing to train on"),
        ([make_sample(11)], 1, "sample 0 has 11 tokens, more than batch.tokens_per_microbatch=10"),
        ([make_sample(4, num_loss_tokens=0)], 1, "nothing to train on"),
        ([make_sample(4, num_loss_tokens=4)], 1, "first token has no predecessor"),
    ],
)
def test_bad_batches_are_refused(samples: list[TrainingSample], num_ranks: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_batch(samples, num_ranks=num_ranks, tokens_per_microbatch=10)


def test_samples_without_advantage_are_left_out_but_counted_in_the_denominators() -> None:
    samples = [make_sample(4, group_id=index) for index in (0, 3, 0, 5)]  # the advantage is the group_id
    batch = pack_batch(samples, num_ranks=1, tokens_per_microbatch=16, skip_zero_advantages=True)
    (micro_batch,) = micro_batches_of(batch)[0]
    assert sorted(sequences_of(micro_batch)) == [(3, 4), (5, 4)]
    assert batch.num_loss_tokens == 12
    assert batch.num_sequences == 4


def test_every_rank_has_work_when_nearly_all_advantages_are_zero() -> None:
    samples = [make_sample(length) for length in (6, 3, 4)]
    batch = pack_batch(samples, num_ranks=2, tokens_per_microbatch=16, skip_zero_advantages=True)
    assert sorted(sequences_of(rank[0]) for rank in micro_batches_of(batch)) == [[(0, 3)], [(0, 4)]]
    assert batch.num_loss_tokens == 10


def test_fewer_samples_than_ranks_leave_the_other_ranks_a_copy_without_loss() -> None:
    batch = pack_batch([make_sample(5, group_id=7)], num_ranks=3, tokens_per_microbatch=16)
    packed = [micro_batch for rank in micro_batches_of(batch) for micro_batch in rank]
    assert [sequences_of(micro_batch) for micro_batch in packed] == [[(7, 5)]] * 3
    assert sorted(int(micro_batch.loss_mask.sum()) for micro_batch in packed) == [0, 0, 4]
    assert (batch.num_loss_tokens, batch.num_sequences) == (4, 1)


def test_optimizer_steps_cut_the_batch_in_order_with_denominators_of_their_own() -> None:
    samples = [make_sample(length, group_id=index) for index, length in enumerate([4, 5, 6, 7, 8])]
    batch = pack_batch(samples, num_ranks=2, tokens_per_microbatch=16, optimizer_steps=2)
    packed = [
        sorted(each for rank in micro_batches_of(batch, step=step) for part in rank for each in sequences_of(part))
        for step in range(2)
    ]
    assert packed == [[(0, 4), (1, 5)], [(2, 6), (3, 7), (4, 8)]]
    denominators = [[(step.num_loss_tokens, step.num_sequences) for step in rank] for rank in batch.steps_by_rank]
    assert denominators == [[(7, 2), (18, 3)]] * 2
    assert (batch.num_loss_tokens, batch.num_sequences) == (25, 5)


def test_a_step_without_loss_tokens_is_left_out_and_few_samples_make_fewer_steps() -> None:
    samples = [make_sample(4, num_loss_tokens=0), make_sample(5, group_id=1)]
    batch = pack_batch(samples, num_ranks=1, tokens_per_microbatch=16, optimizer_steps=4)
    (steps,) = batch.steps_by_rank
    assert [sequences_of(step.micro_batches[0]) for step in steps] == [[(1, 5)]]
