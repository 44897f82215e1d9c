"""Loss tokens whose ratios to a behaviour policy at -1 nat are given, in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from system.losses.base import Loss, LossInputs, LossOutputs


def inputs_of(
    ratios: Sequence[float], advantages: Sequence[float], *, sequence_index: Sequence[int] | None = None
) -> LossInputs:
    """Log-probabilities are leaves. Without `sequence_index` each token is a sequence."""
    index = torch.tensor(list(range(len(ratios)) if sequence_index is None else sequence_index), dtype=torch.long)
    return LossInputs(
        logprobs=(torch.tensor(ratios, dtype=torch.float64).log() - 1.0).requires_grad_(),
        rollout_logprobs=torch.full((len(ratios),), -1.0, dtype=torch.float64),
        advantages=torch.tensor(advantages, dtype=torch.float64),
        sequence_index=index,
        num_sequences=int(index.max()) + 1,
    )


def gradient_of(loss: Loss, inputs: LossInputs, *, weights: Tensor | None = None) -> tuple[LossOutputs, list[float]]:
    """The loss of each token, and the gradient of their weighted sum with respect to the log-probabilities."""
    outputs = loss(inputs)
    (outputs.loss if weights is None else outputs.loss * weights).sum().backward()
    assert inputs.logprobs.grad is not None
    return outputs, inputs.logprobs.grad.tolist()
