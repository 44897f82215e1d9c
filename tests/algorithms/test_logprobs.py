"""Chunked token statistics against a float64 log-softmax over the whole vocabulary."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from system.algorithms.logprobs import token_statistics

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


@pytest.mark.parametrize(("tokens_per_chunk", "columns_per_chunk"), CHUNKS)
@pytest.mark.parametrize("scale", [1.0, 40.0])  # 40: logits of several hundred, whose exp would overflow
def test_statistics_equal_the_definition(
    tokens_per_chunk: int | None, columns_per_chunk: int | None, scale: float
) -> None:
    hidden, weight, target_ids = example(scale=scale)
    result = token_statistics(
        hidden,
        weight=weight,
        target_ids=target_ids,
        temperature=0.7,
        tokens_per_chunk=tokens_per_chunk,
        columns_per_chunk=columns_per_chunk,
    )
    for value, expected in zip(result, reference(hidden, weight, target_ids, temperature=0.7), strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-5 * scale)


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


def test_padding_rows_of_the_vocabulary_are_left_out() -> None:
    hidden, weight, target_ids = example()
    padded = torch.cat([weight, torch.full((9, 8), 5.0)]).requires_grad_()
    result = token_statistics(hidden, weight=padded, target_ids=target_ids, num_real_tokens=23, columns_per_chunk=10)
    for value, expected in zip(result, reference(hidden, weight, target_ids, temperature=1.0), strict=True):
        torch.testing.assert_close(value.detach().double(), expected, rtol=1e-5, atol=1e-5)
    result.logprobs.sum().backward()
    assert padded.grad is not None
    assert bool((padded.grad[23:] == 0).all())


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
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"num_real_tokens": 24}, "num_real_tokens must be in"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    hidden, weight, target_ids = example()
    with pytest.raises(ValueError, match=message):
        token_statistics(hidden, **{"weight": weight, "target_ids": target_ids, **changes})
