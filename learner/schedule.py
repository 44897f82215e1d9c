"""The learning rate of each update: linear warm-up, then cosine. A function of the update number alone.

No scheduler object holds state, so a resumed run continues with exactly the rate it would have had.
"""

import math


def learning_rate_at(update: int, *, num_updates: int, peak: float, warmup_ratio: float, final_ratio: float) -> float:
    """Rate of update 0 .. num_updates - 1.

    W = ceil(warmup_ratio * num_updates) updates rise linearly, the first already above 0: peak (u + 1) / W.
    Then peak (f + (1 - f) (1 + cos(pi x)) / 2), with x from 0 right after warm-up to 1 at the last update and
    f = `final_ratio`. Updates beyond the last keep its rate.
    """
    if update < 0 or num_updates < 1:
        raise ValueError(f"update must be >= 0 and num_updates >= 1, got {update} and {num_updates}")
    num_warmup = math.ceil(warmup_ratio * num_updates)
    if update < num_warmup:
        return peak * (update + 1) / num_warmup
    progress = min(1.0, (update - num_warmup) / max(1, num_updates - 1 - num_warmup))
    return peak * (final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))
