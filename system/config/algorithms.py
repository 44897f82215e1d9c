"""The algorithm that a configuration names: a built-in by its file in system/algorithms/, or your own by import path.

A built-in file sets ALGORITHM to its class (see system/algorithms/base.py). Imported by name, because the configuration
lies below the algorithms.
"""

import functools
import importlib
from pathlib import Path
from typing import Any

from system.config.imports import import_class, is_import_path
from system.config.options import make_options
from system.config.schema import AlgorithmConfig, Config
from system.config.scorers import reward_weights
from system.errors import ConfigError

_PACKAGE = "system.algorithms"
_METHODS = ("credit", "refusal", "evidence", "add_metrics", "heat_maps", "check")


@functools.cache
def built_in_algorithms() -> dict[str, Any]:
    """Class by name, in alphabetical order."""
    folder = Path(__file__).parents[1] / "algorithms"
    found = {}
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.stem):
        if path.stem != "__init__":
            inner = ".".join(path.relative_to(folder).with_suffix("").parts)
            module = importlib.import_module(f"{_PACKAGE}.{inner}")
            if hasattr(module, "ALGORITHM"):
                found[path.stem] = module.ALGORITHM
    return found


def algorithm_class(name: str) -> Any:
    """The class of a subclass of system.algorithms.base.Algorithm. Raises ConfigError in one line."""
    if is_import_path(name):
        return import_class(name, key="algorithm.name", methods=_METHODS)
    if name not in built_in_algorithms():
        others = "an import path package.module:Name"
        raise ConfigError.unknown("algorithm.name", given=name, known=built_in_algorithms(), others=others)
    return built_in_algorithms()[name]


def algorithm_options(algorithm: AlgorithmConfig) -> Any:
    """The options of the algorithm as its own dataclass. Raises ConfigError."""
    return make_options(algorithm_class(algorithm.name).Options, algorithm.options, prefix="algorithm.options")


def evidence_of(algorithm: AlgorithmConfig) -> Any:
    """What the algorithm asks of each group beside its reward terms (system.algorithms.base.Evidence), or None."""
    return algorithm_class(algorithm.name).evidence(algorithm_options(algorithm))


def check_algorithm(config: Config) -> None:
    """The algorithm exists, has these options, and can work with this reward and task. Raises ConfigError."""
    algorithm, completions = algorithm_class(config.algorithm.name), config.batch.completions_per_prompt
    if completions < algorithm.min_completions:
        raise ConfigError(
            "batch.completions_per_prompt",
            given=completions,
            expected=f"at least {algorithm.min_completions}: algorithm.name={config.algorithm.name} compares the "
            "completions of a prompt",
            fix="e.g. batch.completions_per_prompt=8",
        )
    options = algorithm_options(config.algorithm)
    if config.batch.portions > 1 and not algorithm.credits_groups_alone(options):
        raise ConfigError(
            "batch.portions",
            given=config.batch.portions,
            expected=f"1: algorithm.name={config.algorithm.name}, with its options, compares the groups of a batch",
            fix="batch.portions=1, or an algorithm that credits each group alone",
        )
    algorithm.check(
        options,
        weights=reward_weights(config.reward),
        normalise_terms=config.reward.normalise_terms,
        task_name=config.task.name,
    )
