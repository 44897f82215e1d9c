"""Which weights a scoring replica scores with: the newest, those of k versions ago, or their moving average.

The model receives every broadcast in place; `adopt` then turns what it holds into what shall score. Called by
scoring_model.py only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


class ScoringWeights(Protocol):
    """A rule from the sequence of received weights to the weights that score."""

    def adopt(self, parameters: Parameters, *, policy_version: int) -> int:
        """`parameters` hold `policy_version`, which came in last; write into them what scores; returns its version."""

    def state(self) -> dict[str, Tensor]:
        """What has been gathered so far, in host memory."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state`. Raises ValueError when it is that of another mode."""


class NewestWeights:
    """Mode online, and offline, where nothing is ever received."""

    def adopt(self, parameters: Parameters, *, policy_version: int) -> int:
        return policy_version

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise ValueError(f"the newest weights need no state, got {len(state)} tensors")


class LaggedWeights:
    """The weights of `lag_versions` versions ago, the oldest known ones until there are that many.

    Holds `lag_versions` copies in host memory.
    """

    def __init__(self, *, lag_versions: int) -> None:
        self._past: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=lag_versions + 1)

    def adopt(self, parameters: Parameters, *, policy_version: int) -> int:
        if not self._past or policy_version > self._past[-1][0]:
            self._past.append((policy_version, {name: _host_copy(value) for name, value in parameters.items()}))
        version, weights = self._past[0]
        for name, value in parameters.items():
            value.copy_(weights[name])
        return version

    def state(self) -> dict[str, Tensor]:
        return {f"{version}/{name}": value for version, weights in self._past for name, value in weights.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        by_version: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            version, _, name = key.partition("/")
            if not version.isdecimal():
                raise ValueError(f"the state of lagged weights has keys VERSION/NAME, got {key!r}")
            by_version.setdefault(int(version), {})[name] = value
        self._past.clear()
        self._past.extend(sorted(by_version.items()))


class AveragedWeights:
    """ema_v = decay * ema_{v-1} + (1 - decay) * w_v, in float32; the first weights start it. Its version is v."""

    def __init__(self, *, decay: float) -> None:
        self._decay = decay
        self._average: dict[str, Tensor] = {}
        self._policy_version = -1

    def adopt(self, parameters: Parameters, *, policy_version: int) -> int:
        if not self._average:
            self._average = {name: value.detach().float().clone() for name, value in parameters.items()}
        elif policy_version > self._policy_version:
            for name, value in parameters.items():
                self._average[name].lerp_(value.detach().float(), 1.0 - self._decay)
        self._policy_version = max(policy_version, self._policy_version)
        for name, value in parameters.items():
            value.copy_(self._average[name])
        return self._policy_version

    def state(self) -> dict[str, Tensor]:
        version = {"policy_version": torch.tensor(self._policy_version)}
        return version | {f"average/{name}": value.cpu() for name, value in self._average.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if "policy_version" not in state:
            raise ValueError("the state of averaged weights has a policy_version, this one has none")
        self._policy_version = int(state["policy_version"])
        self._average = {
            key.removeprefix("average/"): value.clone() for key, value in state.items() if key != "policy_version"
        }


def _host_copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True)
