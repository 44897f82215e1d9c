"""Every mode of the fused token statistics against the plain formulas in float64 on whole logits.

Tolerances: 1e-5 for float32 and 2e-2 for bfloat16 parameters, absolute for values up to 1 and relative above that.
The reference sees the same (rounded) parameters.
"""

import math

import pytest
import torch
from torch import Tensor

from system.numerics.logprobs import TokenStatistics, token_statistics

NUM_TOKENS, VOCABULARY, NUM_REAL = 13, 41, 37  # primes: no chunk divides them
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = list(TOLERANCES)
CHUNKS = [(1, 1), (1, None), (None, 1), (5, 7), (4, 37), (13, 41), (64, 64), (None, None)]  # (tokens, columns)


def example(dtype: torch.dtype, *, scale: float = 1.0, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight, and targets of which the last are padding columns; logits of about +-`scale` * 10."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(NUM_TOKENS, 16, generator=generator) * scale
    weight = torch.randn(VOCABULARY, 16, generator=generator)
    target_ids = torch.arange(VOCABULARY - NUM_TOKENS, VOCABULARY)
    return hidden.to(device, dtype), weight.to(device, dtype), target_ids.to(device)


def reference(logits: Tensor, target_ids: Tensor, *, num_real: int) -> TokenStatistics:
    """By definition, from float64 logits [M, V]."""
    log_p = logits.log_softmax(dim=-1)
    real_log_p = logits[:, :num_real].log_softmax(dim=-1)
    uniform = 1 / num_real
    return TokenStatistics(
        logprobs=log_p.gather(1, target_ids[:, None])[:, 0],
        entropy=-(log_p.exp() * log_p).sum(dim=-1),
        self_certainty=(uniform * (math.log(uniform) - real_log_p)).sum(dim=-1),
    )


def assert_equal(result: TokenStatistics, expected: TokenStatistics, *, tolerance: float) -> None:
    for name, value in result._asdict().items():
        assert value.dtype == torch.float32
        difference = (value.double() - getattr(expected, name)).abs() / getattr(expected, name).abs().clamp_min(1.0)
        assert float(difference.max()) <= tolerance, f"{name}: off by {float(difference.max()):.2g}"


def check(
    dtype: torch.dtype,
    *,
    tokens_per_chunk: int | None = None,
    columns_per_chunk: int | None = None,
    num_real: int = VOCABULARY,
    temperature: float = 1.0,
    scale: float = 1.0,
    device: str = "cpu",
) -> None:
    hidden, weight, target_ids = example(dtype, scale=scale, device=device)
    result = token_statistics(
        hidden,
        weight=weight,
        target_ids=target_ids,
        temperature=temperature,
        num_real_tokens=num_real,
        tokens_per_chunk=tokens_per_chunk,
        columns_per_chunk=columns_per_chunk,
    )
    logits = hidden.double() @ weight.double().T / temperature
    assert_equal(result, reference(logits, target_ids, num_real=num_real), tolerance=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_real", [VOCABULARY, NUM_REAL, 1])
@pytest.mark.parametrize(("tokens_per_chunk", "columns_per_chunk"), CHUNKS)
def test_any_chunks_with_and_without_padding_columns(
    tokens_per_chunk: int | None, columns_per_chunk: int | None, num_real: int, dtype: torch.dtype
) -> None:
    check(dtype, tokens_per_chunk=tokens_per_chunk, columns_per_chunk=columns_per_chunk, num_real=num_real)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.3, 1.7])
def test_any_temperature(temperature: float, dtype: torch.dtype) -> None:
    check(dtype, temperature=temperature, num_real=NUM_REAL, tokens_per_chunk=5, columns_per_chunk=7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 4.0, 1e3])  # 4: the logits of a sharp model; 1e3: +-1e4, overflowing exp
def test_any_size_of_logits(scale: float, dtype: torch.dtype) -> None:
    check(dtype, scale=scale, num_real=NUM_REAL, columns_per_chunk=7)


def test_a_bfloat16_model_has_logits_that_are_not_rounded() -> None:
    # What the tolerance of 2e-2 leaves out, were the logits themselves bfloat16.
    hidden, weight, target_ids = example(torch.bfloat16, scale=4.0)
    expected = reference(hidden.double() @ weight.double().T, target_ids, num_real=VOCABULARY)
    rounded = reference((hidden @ weight.T).double(), target_ids, num_real=VOCABULARY)
    assert float((rounded.logprobs - expected.logprobs).abs().max()) > 0.05
    result = token_statistics(hidden, weight=weight, target_ids=target_ids)
    assert_equal(result, expected, tolerance=1e-5)


@pytest.mark.parametrize("columns_per_chunk", [1, 4, None])
@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_logits_far_from_zero_lose_nothing(offset: float, columns_per_chunk: int | None) -> None:
    # Logits offset + k/8 are exact in float32, so the errors are the kernel's own: absolute 1e-5 although the
    # logsumexp is 1e4, whose last digit in float32 is 1e-3.
    hidden = torch.tensor([[offset, 1.0], [offset, -1.0]])
    weight = torch.stack([torch.ones(29), torch.arange(29) % 11 / 8], dim=1)  # ties, and no order
    target_ids = torch.tensor([3, 28])
    result = token_statistics(
        hidden, weight=weight, target_ids=target_ids, num_real_tokens=23, columns_per_chunk=columns_per_chunk
    )
    expected = reference(hidden.double() @ weight.double().T, target_ids, num_real=23)
    assert float(expected.self_certainty.max()) < 1.0
    assert_equal(result, expected, tolerance=1e-5)


@pytest.mark.parametrize("gap", [50.0, 70.0, 200.0])
def test_columns_of_no_weight_still_count_for_the_certainty(gap: float) -> None:
    # z = (0, -gap x 4): p is 1 at the first, and KL(U || p) = 0.8 gap - log 5.
    weight = torch.tensor([[0.0], [-gap], [-gap], [-gap], [-gap]])
    result = token_statistics(torch.ones(2, 1), weight=weight, target_ids=torch.tensor([0, 3]))
    torch.testing.assert_close(result.logprobs, torch.tensor([0.0, -gap]))
    torch.testing.assert_close(result.entropy, torch.zeros(2), rtol=0.0, atol=1e-15)
    torch.testing.assert_close(result.self_certainty, torch.full((2,), 0.8 * gap - math.log(5.0)))


@pytest.mark.parametrize("columns_per_chunk", [1, 2, None])
def test_extreme_logits_by_hand(columns_per_chunk: int | None) -> None:
    # z = (1e4, -1e4, 0, 1e4): two equal maxima share everything.
    weight = torch.tensor([[1e4], [-1e4], [0.0], [1e4]])
    result = token_statistics(
        torch.ones(4, 1), weight=weight, target_ids=torch.arange(4), columns_per_chunk=columns_per_chunk
    )
    half = math.log(2.0)
    torch.testing.assert_close(result.logprobs, torch.tensor([-half, -2e4 - half, -1e4 - half, -half]))
    torch.testing.assert_close(result.entropy, torch.full((4,), half))
    # logsumexp - mean - log V = 1e4 + log 2 - 2.5e3 - log 4
    torch.testing.assert_close(result.self_certainty, torch.full((4,), 7.5e3 - half))


@pytest.mark.parametrize("dtype", DTYPES)
def test_default_chunks_of_a_vocabulary_that_needs_several(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    num_tokens, vocabulary, num_real = 1100, 2311, 2200
    hidden = torch.randn(num_tokens, 8, generator=generator).to(dtype)
    weight = torch.randn(vocabulary, 8, generator=generator).to(dtype)
    target_ids = torch.randint(0, vocabulary, (num_tokens,), generator=generator)
    result = token_statistics(hidden, weight=weight, target_ids=target_ids, num_real_tokens=num_real)
    expected = reference(hidden.double() @ weight.double().T, target_ids, num_real=num_real)
    assert_equal(result, expected, tolerance=TOLERANCES[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens_per_chunk", "columns_per_chunk"), CHUNKS)
def test_any_chunks_on_a_gpu(tokens_per_chunk: int | None, columns_per_chunk: int | None, dtype: torch.dtype) -> None:
    check(
        dtype,
        tokens_per_chunk=tokens_per_chunk,
        columns_per_chunk=columns_per_chunk,
        num_real=NUM_REAL,
        scale=4.0,
        device="cuda",
    )
