"""Tolerances by hand: calibrated at the first load, fixed where configured, and who is to blame."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from system.errors import WeightSyncError
from system.weights.canary import CanaryTolerance, canary_difference, refusal
from system.weights.manifest import ReceiverStatus, WeightsManifest
from tests.weights.memory_store import MemoryStore

WEIGHT = torch.ones(2)


def manifest_of(weight: torch.Tensor = WEIGHT) -> WeightsManifest:
    return MemoryStore().publish({"w": weight}, policy_version=0, canary_logprobs=np.zeros(1, np.float32))


def status(difference: float | None, *, dtype: str = "float32", name: str = "rollout worker 0") -> ReceiverStatus:
    return ReceiverStatus(
        receiver=name,
        policy_version=0,
        digest=manifest_of().digest,
        dtype=dtype,
        canary_max_abs_diff=difference,
        seconds=0.0,
        pause_seconds=0.0,
        proved_fraction=1.0,
    )


def test_difference_is_the_largest_and_infinite_for_what_is_no_number() -> None:
    canary = np.array([-1.0, -2.0], np.float32)
    assert canary_difference(canary, np.array([np.nan, -2.0], np.float32)) == float("inf")
    assert canary_difference(canary, canary - np.float32(0.25)) == 0.25


def test_refusal_names_what_a_receiver_holds() -> None:
    held = status(0.0)
    assert refusal(held, manifest_of()) is None
    assert refusal(replace(held, policy_version=1), manifest_of()) == "rollout worker 0 holds policy version 1, not 0"
    assert "digest" in str(refusal(held, manifest_of(WEIGHT + 1)))


@pytest.mark.parametrize(
    ("spreads", "dtype", "passes", "fails"),
    [
        ((5e-5, 7e-5), "float32", 5.5e-4, 5.7e-4),  # 8 x 7e-5
        ((1e-6, 3e-6), "float32", 9e-5, 1.1e-4),  # not below 1e-4
        ((0.05,), "bfloat16", 0.39, 0.41),  # 8 x 0.05
    ],
)
def test_tolerance_is_a_multiple_of_the_spread_at_the_first_load(
    spreads: tuple[float, ...], dtype: str, passes: float, fails: float
) -> None:
    tolerance = CanaryTolerance(None)
    tolerance.calibrate("rollout worker", [status(each, dtype=dtype) for each in spreads], manifest=manifest_of())
    tolerance.calibrate("rollout worker", [status(0.005, dtype=dtype)], manifest=manifest_of())  # too late
    assert tolerance.refusal("rollout worker", status(passes)) is None
    assert "log-probabilities differ" in str(tolerance.refusal("rollout worker", status(fails)))
    assert tolerance.refusal("scoring replica", status(fails)) is None  # not calibrated yet


def test_one_receiver_that_disagrees_at_the_first_load_is_refused_and_calibrates_nothing() -> None:
    tolerance = CanaryTolerance(None)
    wrong = status(0.5)
    tolerance.calibrate("rollout worker", [wrong, status(1e-5)], manifest=manifest_of())
    assert "differ from the learner's by 0.5 nats (allowed: 0.0001)" in str(tolerance.refusal("rollout worker", wrong))


@pytest.mark.parametrize("difference", [0.02, float("inf")])
def test_when_all_disagree_at_the_first_load_the_model_is_named(difference: float) -> None:
    tolerance = CanaryTolerance(None)
    everybody = [status(difference), status(difference + 1)]
    with pytest.raises(WeightSyncError, match="every rollout worker disagree on Qwen2ForCausalLM: with the same"):
        tolerance.calibrate("rollout worker", everybody, manifest=manifest_of())


def test_a_configured_tolerance_is_the_tolerance() -> None:
    tolerance = CanaryTolerance(0.25)
    tolerance.calibrate("rollout worker", [status(3.0)], manifest=manifest_of())
    assert tolerance.refusal("rollout worker", status(0.24)) is None
    assert tolerance.refusal("rollout worker", status(0.26)) is not None


def test_an_average_without_canary_is_not_judged_by_it() -> None:
    tolerance = CanaryTolerance(None)
    tolerance.calibrate("scoring replica", [status(None)], manifest=manifest_of())
    assert tolerance.refusal("scoring replica", status(None)) is None
