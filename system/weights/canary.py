"""The canary: how far a receiver's log-probabilities may be from the learner's, and who is refused.

Digests prove that the bytes arrived; the canary proves that the receiver computes with them.
"""

from collections.abc import Sequence

import numpy as np

from system.errors import WeightSyncError
from system.records import FloatArray
from system.weights.manifest import ReceiverStatus, WeightsManifest

_MULTIPLE = 8.0  # of the spread at the first load, over all that training may do to the distribution
# Nats by precision: what a single token may differ by in any model, and what no rounding explains.
_SMALLEST_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
_LARGEST_SPREAD = {"float32": 1e-2, "bfloat16": 1.0}


def canary_difference(learner: FloatArray, receiver: FloatArray) -> float:
    """Largest absolute difference in nats; infinite when a value is not a number."""
    difference = np.abs(np.asarray(learner, np.float64) - np.asarray(receiver, np.float64)).max()
    return float(difference) if np.isfinite(difference) else float("inf")


def calibrated_tolerance(spread: float, *, precision: str) -> float:
    """What is allowed from now on, nats, when the difference was `spread` while both sides held the same files."""
    return max(_MULTIPLE * spread, _SMALLEST_TOLERANCE[precision])


def refusal(status: ReceiverStatus, manifest: WeightsManifest) -> str | None:
    """Why a receiver that reports `status` holds something else than `manifest`; None when it does not."""
    if status.policy_version != manifest.policy_version:
        return f"{status.receiver} holds policy version {status.policy_version}, not {manifest.policy_version}"
    if status.digest != manifest.digest:
        return f"{status.receiver} holds weights with digest {status.digest}, not {manifest.digest}"
    return None


class CanaryTolerance:
    """Calibrated for each kind of receiver at its first load, where learner and receivers hold the same files.

    `configured` (nats) fixes the tolerance of all kinds instead.
    """

    def __init__(self, configured: float | None) -> None:
        self._configured = configured
        self._calibrated: dict[str, float] = {}

    def calibrate(self, kind: str, statuses: Sequence[ReceiverStatus], *, manifest: WeightsManifest) -> None:
        """Take the tolerance from the receivers of one kind, unless it is known already.

        Raises WeightSyncError when all of them differ by more than rounding explains: then it is not one receiver
        that is wrong, but the model that engine and learner compute differently.
        """
        compared = [each for each in statuses if each.canary_max_abs_diff is not None]
        if self._configured is not None or kind in self._calibrated or not compared:
            return
        precision = coarser_precision(compared[0].dtype, manifest.buckets[0].slots[0].dtype)
        credible = [
            each.canary_max_abs_diff
            for each in compared
            if each.canary_max_abs_diff is not None and each.canary_max_abs_diff <= _LARGEST_SPREAD[precision]
        ]
        if not credible:
            smallest = min(each.canary_max_abs_diff or 0.0 for each in compared)
            raise WeightSyncError(
                f"learner and every {kind} disagree on {manifest.architecture}: with the same weights (policy version "
                f"{manifest.policy_version}, digests equal) their log-probabilities differ by at least {smallest:.3g} "
                f"nats in {precision}. transformers and vLLM compute this architecture differently here. Fix: another "
                "model or precision, or, if the difference is acceptable, weight_sync.canary_tolerance_nats above it"
            )
        self._calibrated[kind] = calibrated_tolerance(max(credible), precision=precision)

    def refusal(self, kind: str, status: ReceiverStatus) -> str | None:
        """Why a receiver with the right bytes must not serve; None when it may."""
        allowed = self._configured if self._configured is not None else self._calibrated.get(kind)
        difference = status.canary_max_abs_diff
        if difference is None or allowed is None or difference <= allowed:
            return None
        return (
            f"{status.receiver} holds policy version {status.policy_version} with the right digest, but its "
            f"log-probabilities differ from the learner's by {difference:.3g} nats (allowed: {allowed:.3g}): it does "
            "not compute with the weights that it received"
        )


def coarser_precision(first: str, second: str) -> str:
    """Of two dtypes, as "float32", the one that rounds more."""
    return "bfloat16" if "bfloat16" in (first, second) else "float32"
