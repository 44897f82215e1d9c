"""Stable train/validation splits: which rows are held out depends on their text alone, not on order or seed."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from system.errors import ConfigError


def stable_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def choose_validation_rows(keys: Sequence[str], *, validation_size: int) -> frozenset[int]:
    """Row numbers held out of the training rows; rows with the same key stay together.

    A smaller validation split is a part of a larger one. Raises ConfigError when the size leaves nothing to train on.
    """
    if not 0 <= validation_size < len(keys):
        raise ConfigError(
            "task.validation_size",
            given=validation_size,
            expected=f"0 or more and less than the {len(keys)} training rows",
            fix="lower task.validation_size",
        )
    rows_of_key: defaultdict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(keys):
        rows_of_key[text].append(row)
    held_out: set[int] = set()
    for text in sorted(rows_of_key, key=stable_digest):
        if len(held_out) == validation_size:
            break
        if len(held_out) + len(rows_of_key[text]) <= validation_size:
            held_out.update(rows_of_key[text])
    return frozenset(held_out)
