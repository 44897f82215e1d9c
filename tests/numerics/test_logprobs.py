"""Token statistics by hand, their gradients, their memory, and what is refused.

test_logprobs_modes.py compares every mode with the formula in float64.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from system.errors import NotFiniteError
from system.numerics.logprobs import TokenStatistics, require_finite, token_statistics

CHUNKS = [(None, None), (3, 5), (1, 1), (64, 7)]  # (tokens, columns)


def example(*, num_tokens: int = 13, vocabulary: int = 23, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, 8, generator=generator) * scale
    weight = torch.randn(vocabulary, 8, generator=generator)
    return hidden, weight, torch.randint(0, vocabulary, (num_tokens,), generator=generator)


def reference(
    hidden: Tensor, weight: Tensor, target_ids: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprobs, entropy, self_certainty) by definition, float64."""
    log_p = (hidden.double() @ weight.double().T / temperature).log_softmax(dim=-1)
    logprobs = log_p.gather(1, target_ids[:, None])[:, 0]
    uniform = -math.log(log_p.shape[1])
    return logprobs, -(log_p.exp() * log_p).sum(dim=-1), (uniform - log_p).mean(dim=-1)


def test_two_tokens_by_hand() -> None:
    # logits log 1, log 3: p = (1/4, 3/4)
    weight = torch.tensor([[0.0], [math.log(3.0)]])
    result = token_statistics(torch.ones(2, 1), weight=weight, target_ids=torch.tensor([0, 1]))
    torch.testing.assert_close(result.logprobs, torch.tensor([math.log(0.25), math.log(0.75)]))
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    certainty = -math.log(2.0) - 0.5 * math.log(0.25 * 0.75)
    torch.testing.assert_close(result.entropy, torch.full((2,), entropy))
    torch.testing.assert_close(result.self_certainty, torch.full((2,), certainty))


def test_temperature_divides_the_logits() -> None:
    # logits 0, 2 log 3 at temperature 2: p = (1/4, 3/4)
    weight = torch.tensor([[0.0], [2 * math.log(3.0)]])
    result = token_statistics(torch.ones(1, 1), weight=weight, target_ids=torch.tensor([1]), temperature=2.0)
    torch.testing.assert_close(result.logprobs, torch.tensor([math.log(0.75)]))


@pytest.mark.parametrize("logit", [0.0, -7.0, 1e4])
def test_equal_logits_give_full_entropy_and_no_certainty(logit: float) -> None:
    result = token_statistics(torch.ones(1, 1), weight=torch.full((5, 1), logit), target_ids=torch.tensor([3]))
    torch.testing.assert_close(result.logprobs, torch.tensor([-math.log(5.0)]))
    torch.testing.assert_close(result.entropy, torch.tensor([math.log(5.0)]))
    assert 0.0 <= float(result.self_certainty) < 1e-6


@pytest.mark.parametrize(("tokens_per_chunk", "columns_per_chunk"), CHUNKS)
def test_gradients_equal_the_definition(tokens_per_chunk: int | None, columns_per_chunk: int | None) -> None:
    hidden, weight, target_ids = example()
    coefficients = torch.linspace(-1, 1, len(hidden))
    gradients = []
    for exact in (False, True):
        leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        if exact:
            logprobs, entropy, _ = reference(leaves[0], leaves[1], target_ids, temperature=1.3)
        else:
            logprobs, entropy, _ = token_statistics(
                leaves[0],
                weight=leaves[1],
                target_ids=target_ids,
                temperature=1.3,
                tokens_per_chunk=tokens_per_chunk,
                columns_per_chunk=columns_per_chunk,
            )
        (coefficients * logprobs + 0.3 * coefficients**2 * entropy).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for value, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_padding_columns_count_for_the_log_probability_and_not_for_the_certainty() -> None:
    # logits log 1, log 3 of tokens and log 4 of padding: p = (1/8, 3/8, 4/8), among the tokens (1/4, 3/4)
    weight = torch.tensor([[0.0], [math.log(3.0)], [math.log(4.0)]])
    result = token_statistics(
        torch.ones(3, 1), weight=weight, target_ids=torch.tensor([0, 1, 2]), num_real_tokens=2, columns_per_chunk=2
    )
    torch.testing.assert_close(result.logprobs, torch.tensor([1 / 8, 3 / 8, 4 / 8]).log())
    entropy = -sum(p * math.log(p) for p in (1 / 8, 3 / 8, 4 / 8))
    torch.testing.assert_close(result.entropy, torch.full((3,), entropy))
    certainty = -math.log(2.0) - 0.5 * math.log(0.25 * 0.75)
    torch.testing.assert_close(result.self_certainty, torch.full((3,), certainty))


def test_the_gradient_reaches_padding_columns() -> None:
    weight = torch.tensor([[0.0], [math.log(3.0)], [math.log(4.0)]], requires_grad=True)
    token_statistics(
        torch.ones(1, 1), weight=weight, target_ids=torch.tensor([0]), num_real_tokens=2
    ).logprobs.sum().backward()
    # d log p_0 / dz = (1, 0, 0) - p
    torch.testing.assert_close(weight.grad, torch.tensor([[7 / 8], [-3 / 8], [-4 / 8]]))


def test_no_tokens_give_no_statistics_and_zero_gradients() -> None:
    weight = torch.randn(5, 8, requires_grad=True)
    hidden = torch.zeros(0, 8, requires_grad=True)
    result = token_statistics(hidden, weight=weight, target_ids=torch.zeros(0, dtype=torch.long))
    assert result.logprobs.shape == (0,)
    result.logprobs.sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) == 0.0


def test_the_whole_logit_matrix_is_never_in_memory() -> None:
    # Largest tensor seen by the profiler of the allocator: a chunk, not [T, V].
    hidden, weight, target_ids = example(num_tokens=64, vocabulary=4096)
    hidden.requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        result = token_statistics(
            hidden, weight=weight, target_ids=target_ids, tokens_per_chunk=16, columns_per_chunk=256
        )
        result.logprobs.sum().backward()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 64 * 4096 * 4 / 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.zeros(5, 7)}, "do not fit"),
        ({"target_ids": torch.zeros(3, dtype=torch.long)}, "target_ids must be"),
        ({"weight": torch.zeros(5, 8, dtype=torch.bfloat16)}, "must have one dtype"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"temperature": math.nan}, "temperature must be > 0"),
        ({"num_real_tokens": 24}, "num_real_tokens must be in"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    hidden, weight, target_ids = example()
    with pytest.raises(ValueError, match=message):
        token_statistics(hidden, **{"weight": weight, "target_ids": target_ids, **changes})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_hidden_state_that_is_not_finite_is_refused(value: float) -> None:
    hidden, weight, target_ids = example()
    hidden[4, 2] = value
    hidden[9, 0] = value
    statistics = token_statistics(hidden, weight=weight, target_ids=target_ids, columns_per_chunk=5)
    message = r"scorer, policy version 7: 2 of 13 positions are not finite, the first is 4 \(logprobs nan.*diverged"
    with pytest.raises(NotFiniteError, match=message):
        require_finite(statistics, what="scorer, policy version 7")


@pytest.mark.parametrize("row", [0, 22])  # the first and the last column of the vocabulary
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(value: float, row: int) -> None:
    hidden, weight, target_ids = example()
    weight[row, 1] = value
    for num_real_tokens in (None, 20):  # also a padding column spoils the log-probabilities
        statistics = token_statistics(hidden, weight=weight, target_ids=target_ids, num_real_tokens=num_real_tokens)
        with pytest.raises(NotFiniteError, match="13 of 13 positions are not finite, the first is 0"):
            require_finite(statistics, what="learner")


@pytest.mark.parametrize("target_id", [-100, -1, 23])
def test_a_target_outside_the_vocabulary_is_refused(target_id: int) -> None:
    hidden, weight, target_ids = example()
    target_ids[12] = target_id
    statistics = token_statistics(hidden, weight=weight, target_ids=target_ids)
    with pytest.raises(NotFiniteError, match="1 of 13 positions are not finite, the first is 12"):
        require_finite(statistics, what="learner")


def test_finite_statistics_of_any_size_are_let_through() -> None:
    hidden, weight, target_ids = example(scale=1e4)
    require_finite(token_statistics(hidden, weight=weight, target_ids=target_ids), what="learner")
    empty = torch.zeros(0)
    require_finite(TokenStatistics(logprobs=empty, entropy=empty, self_certainty=empty), what="learner")
    huge = torch.full((3,), -3e38)  # whose sum overflows
    require_finite(
        TokenStatistics(logprobs=huge, entropy=torch.zeros(3), self_certainty=torch.zeros(3)), what="learner"
    )
