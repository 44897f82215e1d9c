"""Credit by step: from the value of each step of each response to an advantage for each token. Pure functions.

Letters: G responses of a group, S_i steps of response i, T sampled tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from system.records import BoolArray, FloatArray

Float64Array = NDArray[np.float64]
FloatingArray = NDArray[np.floating]
IntegerArray = NDArray[np.integer]


def step_advantages(
    step_values: Sequence[FloatingArray], *, valid: BoolArray, subtract_group_mean: bool = True
) -> list[Float64Array]:
    """Advantage of each step: its value, less what the group's responses are worth at the same relative step.

    Step t of S covers the relative positions t/S up to (t+1)/S, and its value holds all along it. In float64:

        A_i[t] = v_i[t] - (1/n) sum_j v_j[floor(t S_j / S_i)]

    over the n valid members j with at least one step, the response itself among them, as in the mean baseline of
    `group_advantages`. Relative steps, not tokens: a long step counts once. With one such member A is 0.

    On by default: what all responses to a prompt get at a position says nothing about which of their steps was better,
    yet would push all of them up or down. The recipe of the synthetic task has it on.

    Args:
        step_values: G arrays float[S_i]; those of invalid members are ignored and may be NaN.
        valid: bool[G]. An invalid member (no verdict, a scoring that failed) gets 0 and counts nowhere.
        subtract_group_mean: off gives the values of valid members as they are.

    Returns:
        G arrays float64[S_i].

    Raises:
        ValueError: other shapes or dtypes, or a value of a valid member that is not finite.
    """
    if valid.shape != (len(step_values),) or valid.dtype != np.bool_:
        raise ValueError(f"valid must be bool[G], G = {len(step_values)}, got {valid.dtype}{valid.shape}")
    for index, values in enumerate(step_values):
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"step_values[{index}] must be float[S], got {values.dtype}{values.shape}")
        if valid[index] and not np.isfinite(values).all():
            raise ValueError(f"step_values[{index}] of a valid member must be finite, got {values.tolist()}")
    advantages = [
        values.astype(np.float64) if is_valid else np.zeros(len(values))
        for values, is_valid in zip(step_values, valid, strict=True)
    ]
    if not subtract_group_mean:
        return advantages
    members = [values.astype(np.float64) for values, is_valid in zip(step_values, valid, strict=True) if is_valid]
    members = [values for values in members if len(values)]
    for own, is_valid in zip(advantages, valid, strict=True):
        num_steps = len(own)
        if is_valid and num_steps:
            # In integers: 1/49 * 49 is below 1 in floats, which would look up the step before.
            lookups = [values[np.arange(num_steps) * len(values) // num_steps] for values in members]
            own -= np.mean(lookups, axis=0)
    return advantages


def spread_to_tokens(step_values: FloatingArray, *, step_ends: IntegerArray, num_tokens: int) -> FloatArray:
    """The value of its step at every token: token k gets step_values[t] for step_ends[t-1] <= k < step_ends[t].

    Args:
        step_values: values or advantages, float[S].
        step_ends: int[S], offset behind the last token of each step; ascending from at least 1, the last is T.
        num_tokens: T; 0 for a response without steps.

    Returns:
        float32[T], in the unit of `step_values`.

    Raises:
        ValueError: other shapes or dtypes, a step without tokens, or tokens outside of all steps.
    """
    if step_values.ndim != 1 or not np.issubdtype(step_values.dtype, np.floating):
        raise ValueError(f"step_values must be float[S], got {step_values.dtype}{step_values.shape}")
    if step_ends.shape != step_values.shape or not np.issubdtype(step_ends.dtype, np.integer):
        raise ValueError(
            f"step_ends must be int[S] for step_values {step_values.shape}, got {step_ends.dtype}{step_ends.shape}"
        )
    step_lengths = np.diff(step_ends.astype(np.int64), prepend=0)
    if (step_lengths < 1).any():
        raise ValueError(f"step_ends must ascend, each step with at least one token, got {step_ends.tolist()}")
    if step_lengths.sum() != num_tokens:
        raise ValueError(f"step_ends must end at num_tokens = {num_tokens}, got {step_ends.tolist()}")
    return np.repeat(step_values.astype(np.float32), step_lengths)
