"""The learning rate by hand: warm-up, peak, cosine, end, beyond the end."""

import pytest

from learner.schedule import learning_rate_at


def rate(step: int, *, num_steps: int = 13, warmup_ratio: float = 0.3) -> float:
    return learning_rate_at(step, num_steps=num_steps, peak=2.0, warmup_ratio=warmup_ratio, final_ratio=0.1)


def test_warm_up_rises_linearly_and_never_starts_at_zero() -> None:
    assert [rate(step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]


def test_cosine_falls_from_the_peak_to_the_final_ratio() -> None:
    assert rate(4) == 2.0
    assert rate(8) == pytest.approx(2.0 * 0.55)
    assert rate(12) == pytest.approx(0.2)
    assert rate(100) == pytest.approx(0.2)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    assert rate(0, warmup_ratio=0.0) == 2.0
    assert rate(0, num_steps=1, warmup_ratio=0.0) == 2.0


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="step must be >= 0"):
        rate(-1)
