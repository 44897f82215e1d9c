"""Weights of loss tokens: hand-computed, and summing to one over a step."""

import pytest
import torch

from system.numerics.masking import LossDenominator, loss_token_weights, sequence_index, weighted_sum

STARTS = torch.tensor([0, 3, 7])
MASK = torch.tensor([False, True, True, False, False, False, True])


def test_sequence_index_names_the_sequence_of_each_token() -> None:
    assert sequence_index(STARTS).tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_token_mean_divides_by_the_steps_loss_tokens() -> None:
    weights = loss_token_weights(
        MASK, sequence_starts=STARTS, denominator="token_mean", num_loss_tokens=10, num_sequences=4
    )
    torch.testing.assert_close(weights, torch.tensor([0, 0.1, 0.1, 0, 0, 0, 0.1]))


def test_sequence_mean_divides_by_own_tokens_and_the_steps_sequences() -> None:
    weights = loss_token_weights(
        MASK, sequence_starts=STARTS, denominator="sequence_mean", num_loss_tokens=10, num_sequences=4
    )
    torch.testing.assert_close(weights, torch.tensor([0, 0.125, 0.125, 0, 0, 0, 0.25]))


def test_a_constant_length_weighs_every_token_alike_however_long_its_sequence() -> None:
    weights = loss_token_weights(
        MASK,
        sequence_starts=STARTS,
        denominator="constant",
        num_loss_tokens=10,
        num_sequences=4,
        constant_length=5,
    )
    torch.testing.assert_close(weights, torch.tensor([0, 0.05, 0.05, 0, 0, 0, 0.05]))


@pytest.mark.parametrize("denominator", ["token_mean", "sequence_mean"])
def test_weights_of_all_micro_batches_sum_to_one(denominator: LossDenominator) -> None:
    parts = [(MASK, STARTS), (torch.tensor([False, True]), torch.tensor([0, 2]))]
    total = sum(
        float(
            loss_token_weights(
                mask, sequence_starts=starts, denominator=denominator, num_loss_tokens=4, num_sequences=3
            ).sum()
        )
        for mask, starts in parts
    )
    assert total == pytest.approx(1.0)


def test_a_value_outside_the_mask_never_matters() -> None:
    values = torch.tensor([torch.inf, 2.0, torch.nan])
    assert weighted_sum(values, weights=torch.tensor([0.0, 0.5, 0.0])).item() == 1.0


def test_gradient_is_the_weight() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    weighted_sum(values, weights=torch.tensor([0.0, 0.5, 0.25])).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, 0.5, 0.25]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="must be bool"):
        loss_token_weights(
            MASK.float(), sequence_starts=STARTS, denominator="token_mean", num_loss_tokens=1, num_sequences=1
        )
    with pytest.raises(ValueError, match="must be positive"):
        loss_token_weights(MASK, sequence_starts=STARTS, denominator="token_mean", num_loss_tokens=0, num_sequences=1)
    cases: list[tuple[LossDenominator, int | None]] = [("constant", None), ("constant", 0), ("token_mean", 5)]
    for denominator, length in cases:
        with pytest.raises(ValueError, match="constant_length=.* does not go with"):
            loss_token_weights(
                MASK,
                sequence_starts=STARTS,
                denominator=denominator,
                num_loss_tokens=1,
                num_sequences=1,
                constant_length=length,
            )
    with pytest.raises(ValueError, match="ends at 7"):
        loss_token_weights(
            MASK[:5], sequence_starts=STARTS, denominator="sequence_mean", num_loss_tokens=1, num_sequences=1
        )
    with pytest.raises(ValueError, match="one shape"):
        weighted_sum(torch.zeros(2), weights=torch.zeros(3))
