"""Contradictions: what a typed configuration may still get wrong. The bounds of numbers are on their fields.

Called by system/config/load.py once all keys have a value of their type. One function for each section; each raises
ConfigError for the first mistake that it finds.
"""

import math
import re
from dataclasses import fields

from system.config.algorithms import check_algorithm
from system.config.imports import is_import_path
from system.config.losses import check_loss
from system.config.machine import check_machine
from system.config.reference import config_keys, section_types, unread_key
from system.config.resources import uses_scoring_replicas
from system.config.schema import (
    EMBEDDED_TASKS,
    TASKS_OF_ROWS,
    ClusterConfig,
    Config,
    EvaluationConfig,
    LearnerConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    ScorerConfig,
    TaskConfig,
)
from system.config.scorers import check_terms, reward_weights
from system.errors import ConfigError
from system.fields import check_bounds

# bfloat16 keeps 8 bits: a log-probability of a few nats is known to about this much at best.
_SMALLEST_BFLOAT16_TOLERANCE = 0.01


def check_config(config: Config, *, check_devices: bool) -> None:
    """Raises ConfigError for the first number out of bounds, contradiction or (with `check_devices`) missing device."""
    for section in section_types():
        check_bounds(getattr(config, section), prefix=section)
    check_run(config.run)
    check_task(config.task, evaluation=config.evaluation)
    check_batch(config)
    check_rollout(config.rollout)
    check_reward(config.reward)
    if config.task.name == "code":
        check_programs(config.reward, completions_per_prompt=config.batch.completions_per_prompt)
    check_scorer(config)
    check_algorithm(config)
    check_loss(config)
    check_learner(config.learner)
    check_checkpoints(config)
    check_weight_sync(config)
    check_cluster(config.cluster)
    if check_devices:
        check_machine(config)


def check_run(run: RunConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run.name):
        raise ConfigError(
            "run.name",
            given=run.name,
            expected="1 to 100 letters, digits, dots, dashes or underscores, as it names a folder",
            fix="e.g. run.name=chains-grpo-1",
        )
    if not run.directory:
        raise ConfigError("run.directory", given="", expected="a folder", fix="e.g. run.directory=runs")


def check_task(task: TaskConfig, *, evaluation: EvaluationConfig) -> None:
    sources = {"task.train_path": task.train_path, "task.test_path": task.test_path, "task.dataset": task.dataset}
    if task.name not in (*EMBEDDED_TASKS, *TASKS_OF_ROWS) and not is_import_path(task.name):
        known, others = (*EMBEDDED_TASKS, *TASKS_OF_ROWS), "an import path package.module:Name"
        raise ConfigError.unknown("task.name", given=task.name, known=known, others=others)
    if task.name in EMBEDDED_TASKS:
        for key, value in sources.items():
            if value is not None:
                raise unread_key(key, given=value, because=f"{task.name} is embedded")
    if task.name != "gsm8k_chains" and task.max_train_steps is not None:
        because = f"the number of steps of a {task.name} problem is not known"
        raise unread_key("task.max_train_steps", given=task.max_train_steps, because=because)
    if task.dataset is not None and (task.train_path is not None or task.test_path is not None):
        raise ConfigError(
            "task.dataset", given=task.dataset, expected="either a dataset or paths", fix="set the other one to null"
        )
    if task.dataset is None and task.name in TASKS_OF_ROWS:
        for key in ("task.train_path", "task.test_path"):
            if sources[key] is None:
                raise ConfigError(
                    key,
                    given=None,
                    expected=f"a file with rows of {task.name}, or task.dataset",
                    fix=f"{key}=FILE.jsonl",
                )
    if evaluation.split == "validation" and task.name != "triplets":
        largest = max(evaluation.num_problems, evaluation.num_problems_final)
        if largest > task.validation_size:
            raise ConfigError(
                "evaluation.num_problems, evaluation.num_problems_final",
                given=largest,
                expected=f"at most task.validation_size={task.validation_size} problems of the validation split",
                fix="lower them, or raise task.validation_size",
            )


def check_batch(config: Config) -> None:
    batch, ranks = config.batch, config.learner.num_ranks
    samples = batch.prompts_per_step * batch.completions_per_prompt
    if samples < ranks * batch.optimizer_steps:
        raise ConfigError(
            "batch.optimizer_steps",
            given=batch.optimizer_steps,
            expected=f"at most {samples // ranks}, so that each step has a completion for each of the {ranks} ranks",
            fix="lower it, or raise batch.prompts_per_step",
        )
    if batch.portions > 1:
        check_portions(config)
    longest = config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens
    if batch.tokens_per_microbatch < longest:
        raise ConfigError(
            "batch.tokens_per_microbatch",
            given=batch.tokens_per_microbatch,
            expected=f"at least {longest} = rollout.max_prompt_tokens + rollout.max_completion_tokens, one sequence",
            fix=f"batch.tokens_per_microbatch={longest}, or shorter completions",
        )


def check_portions(config: Config) -> None:
    batch = config.batch
    if batch.portions > batch.prompts_per_step:
        raise ConfigError(
            "batch.portions",
            given=batch.portions,
            expected=f"at most batch.prompts_per_step={batch.prompts_per_step}",
            fix="lower it",
        )
    if batch.optimizer_steps > 1:
        raise ConfigError(
            "batch.portions",
            given=batch.portions,
            expected="1 with batch.optimizer_steps above 1: the portions of a batch are one gradient",
            fix="batch.portions=1, or batch.optimizer_steps=1",
        )
    if config.learner.dtype == "bfloat16" and config.learner.zero_stage == 0:
        raise ConfigError(
            "batch.portions",
            given=batch.portions,
            expected="1 with learner.zero_stage=0 in bfloat16, which adds gradients up in that precision",
            fix="learner.zero_stage=1, or batch.portions=1",
        )


def check_rollout(rollout: RolloutConfig) -> None:
    reason = "in training, or the log-probabilities of the samples would be biased"
    if rollout.top_p < 1:
        raise ConfigError("rollout.top_p", given=rollout.top_p, expected=f"1.0 {reason}", fix="rollout.top_p=1.0")
    if rollout.top_k > 0:
        raise ConfigError("rollout.top_k", given=rollout.top_k, expected=f"0 {reason}", fix="rollout.top_k=0")
    other = {"cpu": "gpu_memory_utilization", "cuda": "kv_cache_gib"}[rollout.device]
    value = getattr(rollout, other)
    if value != config_keys()[f"rollout.{other}"].default:
        because = f"engines with rollout.device={rollout.device} do not read it"
        raise unread_key(f"rollout.{other}", given=value, because=because)


def check_reward(reward: RewardConfig) -> None:
    check_terms(reward)
    weights = reward_weights(reward)
    if not any(weights.values()):
        raise ConfigError(
            "reward.terms",
            given=", ".join(f"{weight:g} x {scorer}" for scorer, weight in weights.items()),
            expected="at least one weight other than 0, or nothing is rewarded",
            fix="reward.terms='[{scorer: verifier, weight: 1}]'",
        )
    if "verifier" not in weights:
        raise ConfigError(
            "reward.terms",
            given=", ".join(weights),
            expected="a term of the verifier, which evaluation counts right answers by",
            fix="add {scorer: verifier, weight: 0}, which only monitors",
        )
    if reward.timeout_seconds >= reward.group_timeout_seconds:
        raise ConfigError(
            "reward.timeout_seconds",
            given=reward.timeout_seconds,
            expected=f"less than reward.group_timeout_seconds={reward.group_timeout_seconds:g}",
            fix="lower it, or raise reward.group_timeout_seconds",
        )


def check_programs(reward: RewardConfig, *, completions_per_prompt: int) -> None:
    """What a task whose answers are programs cannot do."""
    if "plurality" in reward_weights(reward):
        raise ConfigError(
            "reward.terms",
            given="plurality",
            expected="other scorers with task.name=code, as programs cannot be compared with each other",
            fix="remove the term",
        )
    rounds = math.ceil(completions_per_prompt / reward.processes_per_worker)
    if rounds * reward.timeout_seconds >= reward.group_timeout_seconds:
        raise ConfigError(
            "reward.group_timeout_seconds",
            given=reward.group_timeout_seconds,
            expected=f"more than {rounds} * reward.timeout_seconds = {rounds * reward.timeout_seconds:g}, what a group "
            "of programs that never end takes with task.name=code",
            fix="raise it, or reward.processes_per_worker",
        )


def check_scorer(config: Config) -> None:
    scorer = config.scorer
    if not uses_scoring_replicas(config):
        _refuse_unused(scorer)
        return
    if (scorer.mode == "lagged") != (scorer.lag_versions > 0):
        raise ConfigError(
            "scorer.lag_versions",
            given=scorer.lag_versions,
            expected="at least 1 with scorer.mode=lagged, and 0 in every other mode",
            fix="e.g. scorer.mode=lagged scorer.lag_versions=4",
        )
    if scorer.max_lag_versions is not None and scorer.mode == "offline":
        raise ConfigError(
            "scorer.max_lag_versions",
            given=scorer.max_lag_versions,
            expected="null with scorer.mode=offline, whose weights are never updated",
            fix="scorer.max_lag_versions=null",
        )
    if scorer.max_lag_versions is not None and scorer.max_lag_versions < scorer.lag_versions:
        raise ConfigError(
            "scorer.max_lag_versions",
            given=scorer.max_lag_versions,
            expected=f"at least scorer.lag_versions={scorer.lag_versions}",
            fix="raise it, or null",
        )
    longest = config.rollout.max_prompt_tokens + config.rollout.max_completion_tokens
    if scorer.tokens_per_pass < longest:
        raise ConfigError(
            "scorer.tokens_per_pass",
            given=scorer.tokens_per_pass,
            expected=f"at least {longest} = rollout.max_prompt_tokens + rollout.max_completion_tokens, one sequence",
            fix=f"scorer.tokens_per_pass={longest}",
        )


def _refuse_unused(scorer: ScorerConfig) -> None:
    for field in fields(scorer):
        value = getattr(scorer, field.name)
        if value != field.default:
            because = "neither a reward term nor the algorithm uses scoring replicas"
            raise unread_key(f"scorer.{field.name}", given=value, because=because)


def check_learner(learner: LearnerConfig) -> None:
    backend = "nccl" if learner.device == "cuda" else "gloo"
    if learner.backend != backend:
        raise ConfigError(
            "learner.backend",
            given=learner.backend,
            expected=f"{backend} with learner.device={learner.device}",
            fix=f"learner.backend={backend}",
        )
    if learner.offload_optimizer and learner.zero_stage == 0:
        raise ConfigError(
            "learner.offload_optimizer",
            given=True,
            expected="learner.zero_stage 1, 2 or 3, as stage 0 cannot offload",
            fix="learner.zero_stage=2, or learner.offload_optimizer=false",
        )
    if learner.offload_optimizer and learner.device == "cpu":
        raise ConfigError(
            "learner.offload_optimizer",
            given=True,
            expected="false with learner.device=cpu, where the state is in host memory already",
            fix="learner.offload_optimizer=false",
        )


def check_checkpoints(config: Config) -> None:
    """The best checkpoint is known only where the weights that are saved are evaluated."""
    saves, evaluations = config.checkpoint.every_updates, config.evaluation.every_updates
    if config.checkpoint.keep_best and saves is not None and (evaluations is None or saves % evaluations):
        raise ConfigError(
            "checkpoint.keep_best",
            given=f"{config.checkpoint.keep_best} with checkpoint.every_updates={saves} and "
            f"evaluation.every_updates={evaluations or 'null'}",
            expected="checkpoint.every_updates a multiple of evaluation.every_updates, so that all weights that are "
            "saved are evaluated",
            fix=f"evaluation.every_updates={saves}",
        )


def check_weight_sync(config: Config) -> None:
    weight_sync = config.weight_sync
    ends: dict[str, LearnerConfig | RolloutConfig | ScorerConfig] = {"rollout": config.rollout}
    if uses_scoring_replicas(config):
        ends["scorer"] = config.scorer
    ends["learner"] = config.learner
    # scoring replicas load from the store: they may lie on CPU, and share a GPU, whatever the backend
    broadcasts = {section: end.device for section, end in ends.items() if section != "scorer"}
    if weight_sync.backend == "nccl" and set(broadcasts.values()) != {"cuda"}:
        devices = " and ".join(f"{section}.device={device}" for section, device in broadcasts.items())
        raise ConfigError(
            "weight_sync.backend",
            given="nccl",
            expected=f"gloo, as {devices} are not all cuda",
            fix="weight_sync.backend=gloo",
        )
    is_coarse = any(end.dtype == "bfloat16" for end in ends.values())
    tolerance = weight_sync.canary_tolerance_nats
    if is_coarse and tolerance is not None and tolerance < _SMALLEST_BFLOAT16_TOLERANCE:
        raise ConfigError(
            "weight_sync.canary_tolerance_nats",
            given=tolerance,
            expected=f"null (calibrated), or at least {_SMALLEST_BFLOAT16_TOLERANCE} when any of "
            + ", ".join(f"{section}.dtype" for section in ends)
            + " is bfloat16",
            fix="weight_sync.canary_tolerance_nats=null",
        )


def check_cluster(cluster: ClusterConfig) -> None:
    if not re.fullmatch(r"local|auto|(ray://)?[\w.-]+:\d+", cluster.address):
        raise ConfigError(
            "cluster.address",
            given=cluster.address,
            expected="local, auto, HOST:PORT or ray://HOST:PORT",
            fix="cluster.address=local on one machine, auto inside a Ray job",
        )
