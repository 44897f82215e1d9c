"""The range of every numeric key. Called by system/config/checks.py."""

from typing import Any

from system.config.reference import config_keys
from system.config.schema import Config
from system.errors import ConfigError

# Largest and smallest value of every numeric key; null passes where the type allows it.
AT_LEAST: dict[str, float] = {
    "run.seed": 0,
    "run.num_updates": 1,
    "task.validation_size": 0,
    "task.max_train_steps": 1,
    "batch.prompts_per_step": 1,
    "batch.completions_per_prompt": 1,
    "batch.tokens_per_microbatch": 1,
    "rollout.num_workers": 1,
    "rollout.tensor_parallel_size": 1,
    "rollout.top_k": 0,
    "rollout.max_prompt_tokens": 1,
    "rollout.max_completion_tokens": 1,
    "rollout.max_sequences": 1,
    "rollout.cpus_per_worker": 0,
    "rollout.max_restarts": 0,
    "reward.num_workers": 1,
    "reward.processes_per_worker": 1,
    "reward.memory_limit_mib": 128,  # below that the verifier's libraries cannot be loaded
    "reward.cpus_per_worker": 0,
    "scorer.num_workers": 1,
    "scorer.lag_versions": 0,
    "scorer.max_lag_versions": 0,
    "scorer.tokens_per_pass": 1,
    "scorer.threads_per_worker": 1,
    "scorer.cpus_per_worker": 0,
    "scorer.max_restarts": 0,
    "belief.max_candidates": 1,
    "belief.beta": 0,
    "belief.reference_weight": 0,
    "algorithm.clip_high": 0,
    "algorithm.importance_cap": 1,  # a smaller cap would scale down samples that agree
    "algorithm.kl_coefficient": 0,
    "algorithm.entropy_coefficient": 0,
    "learner.num_ranks": 1,
    "learner.zero_stage": 0,
    "learner.weight_decay": 0,
    "learner.threads_per_rank": 1,
    "learner.cpus_per_rank": 0,
    "weight_sync.bucket_mib": 1,
    "controller.max_staleness": 0,
    "checkpoint.every_updates": 1,
    "checkpoint.keep": 1,
    "evaluation.every_updates": 1,
    "evaluation.num_problems": 1,
    "evaluation.num_problems_final": 1,
    "evaluation.completions_per_problem": 1,
    "evaluation.completions_per_problem_final": 1,
    "tracker.completions_per_table": 0,
}
ABOVE_ZERO = (
    "run.max_seconds",
    "rollout.temperature",
    "rollout.top_p",
    "rollout.kv_cache_gib",
    "rollout.gpu_memory_utilization",
    "rollout.start_timeout_seconds",
    "rollout.group_timeout_seconds",
    "reward.timeout_seconds",
    "reward.group_timeout_seconds",
    "scorer.temperature",
    "scorer.gpus_per_worker",
    "scorer.start_timeout_seconds",
    "scorer.group_timeout_seconds",
    "learner.learning_rate",
    "learner.adam_epsilon",
    "learner.max_grad_norm",
    "learner.start_timeout_seconds",
    "learner.step_timeout_seconds",
    "weight_sync.timeout_seconds",
    "weight_sync.canary_tolerance_nats",
    "evaluation.temperature",
)
FRACTIONS = (
    "belief.discount",
    "scorer.ema_decay",
    "algorithm.clip_low",
    "learner.warmup_ratio",
    "learner.final_lr_ratio",
)
# A reward may also be given a negative weight.
ANY_NUMBER = ("reward.verifier_weight", "reward.self_certainty_weight", "reward.plurality_weight")
AT_MOST: dict[str, float] = {
    "run.seed": 2**31 - 1,
    "rollout.top_p": 1,
    "rollout.gpu_memory_utilization": 1,
    "learner.zero_stage": 3,
}


def check_ranges(config: Config) -> None:
    """Every number lies in its range."""
    for key in config_keys():
        section, name = key.split(".")
        value: Any = getattr(getattr(config, section), name)
        if value is None:
            continue
        if key in AT_LEAST and value < AT_LEAST[key]:
            raise _out_of_range(key, value, expected=f"at least {AT_LEAST[key]:g}")
        if key in AT_MOST and value > AT_MOST[key]:
            raise _out_of_range(key, value, expected=f"at most {AT_MOST[key]:g}")
        if key in ABOVE_ZERO and value <= 0:
            raise _out_of_range(key, value, expected="a number above 0")
        if key in FRACTIONS and not 0 <= value <= 1:
            raise _out_of_range(key, value, expected="a number from 0 to 1")


def _out_of_range(key: str, value: object, *, expected: str) -> ConfigError:
    return ConfigError(key, given=value, expected=expected, fix=f"change {key} in the file or on the command line")
