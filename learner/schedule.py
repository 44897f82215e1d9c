"""The learning rate of each optimizer step: linear warm-up, then cosine. A function of the step's number alone.

No scheduler object holds state, so a resumed run continues with exactly the rate it would have had.
"""

import math


def learning_rate_at(step: int, *, num_steps: int, peak: float, warmup_ratio: float, final_ratio: float) -> float:
    """Rate of optimizer step 0 .. num_steps - 1.

    W = ceil(warmup_ratio * num_steps) steps rise linearly, the first already above 0: peak (s + 1) / W.
    Then peak (f + (1 - f) (1 + cos(pi x)) / 2), with x from 0 right after warm-up to 1 at the last step and
    f = `final_ratio`. Steps beyond the last keep its rate.
    """
    if step < 0 or num_steps < 1:
        raise ValueError(f"step must be >= 0 and num_steps >= 1, got {step} and {num_steps}")
    num_warmup = math.ceil(warmup_ratio * num_steps)
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - 1 - num_warmup))
    return peak * (final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))
