"""Which weights a recorded step needs, and where: in a checkpoint of the run, in model.path, or in a folder given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from system.commands.replay.findings import Tolerance
from system.config.machine import model_folder
from system.config.schema import Config, ModelConfig, Precision
from system.runtime.checkpoint import checkpoint_directory, policy_directory

# Another machine, another number of threads, another order of the same sums. In float32 on the machine of the run they
# are mostly equal to the last bit.
_TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(absolute=1e-6, relative=1e-4),
    "bfloat16": Tolerance(absolute=5e-3, relative=5e-2),
}


def tolerance_of(dtype: Precision) -> Tolerance:
    """What a forward pass may differ by between machines."""
    return _TOLERANCES[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundWeights:
    """A model of one policy version; `revision` is that of a hub id."""

    path: str
    revision: str | None

    def model(self, model: ModelConfig) -> ModelConfig:
        """The model section with these weights."""
        return replace(model, path=self.path, revision=self.revision)


class WeightsFinder:
    """Looks for the weights of a policy version."""

    def __init__(self, run_folder: Path, *, config: Config, given: Path | None, given_version: int) -> None:
        """`given` is a model folder that the user says holds `given_version`."""
        self._run_folder = run_folder
        self._config = config
        self._given = given
        self._given_version = given_version

    def find(self, version: int) -> FoundWeights | str:
        """The weights, or why they are not there."""
        if self._given is not None and version == self._given_version:
            return FoundWeights(path=str(self._given), revision=None)
        checkpoint = checkpoint_directory(self._run_folder, policy_version=version)
        if checkpoint.is_dir():
            return FoundWeights(path=str(policy_directory(checkpoint)), revision=None)
        if version == 0:
            return self._first_weights()
        return (
            f"it needs the weights of policy version {version}, and {checkpoint} is not there: give them with "
            "--model FOLDER, or replay the update that follows a checkpoint"
        )

    def _first_weights(self) -> FoundWeights | str:
        model = self._config.model
        folder = model_folder(model.path)
        if folder is not None and not folder.is_dir():
            return f"model.path={model.path} is no folder here: give --model FOLDER, or start where the run was started"
        return FoundWeights(path=str(folder or model.path), revision=model.revision)
