"""Fresh numbers for a chain: same shape, same number of digits, exact arithmetic. Called by the chains task.

Candidates are drawn and filtered many at a time in float64; the one that is chosen is then checked exactly.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from system.data.chains.expressions import (
    ExpressionError,
    Shape,
    Solution,
    decimal_places,
    format_number,
    parse_expression,
    solve,
)

# Candidates per attempt; later attempts also let a result have up to so many more decimal places than the original's.
_ATTEMPTS = ((32, 0), (1024, 0), (1024, 2))
_FIXED_LEAVES = frozenset({"0", "1", "100"})  # 100 is the unit of per cent, 1 the whole: no quantities
_FLOAT_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a redraw must keep. A slot is one distinct leaf number: equal leaves stay equal, as one quantity."""

    shape: Shape
    leaf_slots: tuple[int, ...]  # num_leaves
    scales: NDArray[np.float64]  # [slots], 10 ** decimal places
    lows: NDArray[np.float64]  # [slots], smallest scaled number
    sizes: NDArray[np.float64]  # [slots], how many scaled numbers
    places: tuple[int, ...]  # decimal places of each slot
    result_places: tuple[int | None, ...]  # per operation; None: no finite decimal
    result_signs: tuple[int, ...]  # per operation
    result_bounds: tuple[float, ...]  # per operation, on the absolute value


@lru_cache(maxsize=16384)
def _plan(text: str) -> _Plan:
    shape, leaves = parse_expression(text)
    solution = solve(shape, leaves=leaves)
    distinct = list(dict.fromkeys(leaves))
    lows, sizes, places = [], [], []
    for leaf in distinct:
        whole, _, fraction = leaf.partition(".")
        places.append(len(fraction))
        if leaf in _FIXED_LEAVES:
            low, high = int(leaf), int(leaf) + 1
        else:
            low = 10 ** (len(whole) - 1) * 10 ** len(fraction) if int(whole) else 1
            high = 10 ** len(whole) * 10 ** len(fraction) if int(whole) else 10 ** len(fraction)
        lows.append(low)
        sizes.append(high - low)
    return _Plan(
        shape=shape,
        leaf_slots=tuple(distinct.index(leaf) for leaf in leaves),
        scales=np.array([10.0**count for count in places]),
        lows=np.array(lows, dtype=np.float64),
        sizes=np.array(sizes, dtype=np.float64),
        places=tuple(places),
        result_places=tuple(decimal_places(result) for result in solution.results),
        result_signs=tuple((result > 0) - (result < 0) for result in solution.results),
        # One more digit than the original result at most.
        result_bounds=tuple(10.0 ** (len(str(int(abs(result)))) + 1) for result in solution.results),
    )


def _draw(plan: _Plan, *, rng: np.random.Generator, num_candidates: int) -> NDArray[np.float64]:
    """Scaled whole numbers [candidates, slots]; a fraction's last digit is never 0, so the number of places stays."""
    scaled = plan.lows + np.floor(rng.random((num_candidates, len(plan.lows))) * plan.sizes)
    ends_in_zero = (plan.scales > 1) & (scaled % 10 == 0)
    return scaled + ends_in_zero


def _acceptable(plan: _Plan, scaled: NDArray[np.float64], *, extra_places: int) -> NDArray[np.bool_]:
    """Which candidates [candidates] keep signs, sizes and finite decimals at every operation."""
    columns = (scaled / plan.scales).T
    values = [columns[slot] for slot in plan.leaf_slots]
    accepted = np.ones(len(scaled), dtype=np.bool_)
    for index, operation in enumerate(plan.shape.operations):
        left, right = values[operation.left], values[operation.right]
        if operation.operator == "+":
            result = left + right
        elif operation.operator == "-":
            result = left - right
        elif operation.operator == "*":
            result = left * right
        else:
            # The sign rule has already refused candidates whose divisor is 0 where the original's was not.
            result = left / np.where(right == 0, np.nan, right)
        accepted &= np.abs(result) < plan.result_bounds[index]
        if plan.result_signs[index] >= 0:
            accepted &= result > _FLOAT_TOLERANCE if plan.result_signs[index] else result >= -_FLOAT_TOLERANCE
        places = plan.result_places[index]
        if places is not None:
            grown = result * 10.0 ** max(places, extra_places)
            accepted &= np.abs(grown - np.rint(grown)) <= _FLOAT_TOLERANCE * np.maximum(np.abs(grown), 1.0)
        values.append(result)
    return accepted


def _leaf_texts(plan: _Plan, scaled: Sequence[float]) -> tuple[str, ...]:
    texts = []
    for number, places in zip(scaled, plan.places, strict=True):
        digits = str(int(number)).rjust(places + 1, "0")
        texts.append(digits if places == 0 else f"{digits[:-places]}.{digits[-places:]}")
    return tuple(texts[slot] for slot in plan.leaf_slots)


def _solve_exactly(plan: _Plan, leaves: Sequence[str]) -> Solution | None:
    try:
        solution = solve(plan.shape, leaves=leaves)
    except ExpressionError:
        return None
    for result, places, sign in zip(solution.results, plan.result_places, plan.result_signs, strict=True):
        if (places is not None and format_number(result) is None) or (sign >= 0 and result < 0):
            return None
    return solution


def redraw_expression(
    text: str, *, rng: np.random.Generator, excluded: Set[str] = frozenset()
) -> tuple[str, Solution] | None:
    """A chain of the same shape with fresh leaf numbers, or None when a bounded search finds none.

    Every leaf keeps its digits before and after the point; 0, 1 and 100 stay. Equal leaves stay equal. An operation
    whose result was a finite decimal has one again, not negative where the original was not, and at most one digit
    longer. `excluded` holds canonical texts that must not come out.
    """
    plan = _plan(text)
    for num_candidates, extra_places in _ATTEMPTS:
        scaled = _draw(plan, rng=rng, num_candidates=num_candidates)
        for index in np.flatnonzero(_acceptable(plan, scaled, extra_places=extra_places))[:8]:
            leaves = _leaf_texts(plan, scaled[index].tolist())
            if plan.shape.canonical_template.format(*leaves) in excluded:
                continue
            solution = _solve_exactly(plan, leaves)
            if solution is not None:
                return plan.shape.template.format(*leaves), solution
    return None
