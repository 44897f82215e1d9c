"""Contradictions of algorithms that credit steps: BARL, Progress, Markovian RL. Called by system/config/checks.py."""

from dataclasses import fields

from system.config.reference import unread_key
from system.config.resources import uses_beliefs, uses_environment
from system.config.schema import AlgorithmConfig, Config
from system.config.scorers import reward_weights
from system.errors import ConfigError


def check_belief(config: Config) -> None:
    """Keys that the algorithm does not read keep their defaults, and it has what it needs."""
    _refuse_unread(config)
    if not uses_beliefs(config) and not uses_environment(config):
        return
    _check_credit(config)
    if uses_environment(config):
        _check_environment(config)
    elif config.task.name == "code":
        raise ConfigError(
            "algorithm.name",
            given=config.algorithm.name,
            expected="grpo with task.name=code, as beliefs are over answers that can be compared",
            fix="algorithm.name=grpo",
        )


def _refuse_unread(config: Config) -> None:
    of_answers = {
        "evidence", "max_candidates", "beta", "normalise_weights", "reference_weight", "answer_reduction",
        "subtract_group_mean",
    }  # fmt: skip
    of_environment = {"evidence", "hypotheses", "beta", "discount", "subtract_group_mean"}
    read_by: dict[str, set[str]] = {
        "barl": of_environment if config.belief.evidence == "environment" else of_answers,
        "progress": {"answer_reduction", "subtract_group_mean"},
        "markovian": {"discount", "subtract_group_mean"},
        "grpo": set(),
    }
    for field in fields(config.belief):
        value = getattr(config.belief, field.name)
        if field.name not in read_by[config.algorithm.name] and value != field.default:
            algorithm = f"algorithm.name={config.algorithm.name}"
            if config.algorithm.name == "barl":
                algorithm += f" with belief.evidence={config.belief.evidence}"
            raise unread_key(f"belief.{field.name}", given=value, because=f"{algorithm} does not read it")


def _check_credit(config: Config) -> None:
    """Steps are credited by the verifier's verdict alone, and not as GRPO credits completions."""
    name = config.algorithm.name
    for field in fields(AlgorithmConfig):
        value = getattr(config.algorithm, field.name)
        if field.name in ("baseline", "normalise_std") and value != field.default:
            because = f"algorithm.name={name} does not read it but belief.subtract_group_mean"
            raise unread_key(f"algorithm.{field.name}", given=value, because=because)
    reason = f"with algorithm.name={name}, whose only reward is the verifier's verdict"
    for scorer, weight in reward_weights(config.reward).items():
        given = f"{weight:g} x {scorer}"
        if scorer == "verifier" and weight <= 0:
            raise ConfigError("reward.terms", given=given, expected=f"a weight above 0 {reason}", fix="weight: 1")
        if scorer != "verifier" and weight != 0:
            raise ConfigError(
                "reward.terms", given=given, expected=f"weight 0, which only monitors, {reason}", fix="weight: 0"
            )


def _check_environment(config: Config) -> None:
    if config.task.name != "triplets":
        raise ConfigError(
            "task.name",
            given=config.task.name,
            expected="triplets, the task that says at which step a hypothesis pays",
            fix="task.name=triplets, or another algorithm.name",
        )
    hypotheses = config.belief.hypotheses
    if config.algorithm.name == "barl" and (not hypotheses or "" in hypotheses.split(",")):
        raise ConfigError(
            "belief.hypotheses",
            given=hypotheses,
            expected="hypotheses separated by commas with belief.evidence=environment",
            fix="e.g. belief.hypotheses='000,111,222'",
        )
