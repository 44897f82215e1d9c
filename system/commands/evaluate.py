"""`credence evaluate`: held-out accuracy of a policy as it is, with the workers of a run but without a learner."""

from __future__ import annotations

import json
from collections.abc import Sequence

from actors.rollout.worker import NO_POLICY_VERSION
from system.commands.run_controllers import make_evaluator
from system.commands.run_inputs import held_out_prompts, load_tokenizer
from system.config.schema import Config
from system.data.tasks import make_task
from system.records import Prompt
from system.runtime.evaluator import EvaluationResult
from system.runtime.placement import Placement
from system.runtime.pools import make_pools
from system.runtime.session import run_on_ray

_SHUTDOWN_SECONDS = 5.0


def main_evaluate(config: Config) -> int:
    """Print the accuracies as one line of JSON; returns the exit code. Raises ConfigError."""
    prompts = held_out_prompts(config, task=make_task(config.task), tokenizer=load_tokenizer(config))
    stopped_by = run_on_ray(config, lambda: _evaluate(config, prompts=prompts))
    return 0 if stopped_by is None else 128 + stopped_by


async def _evaluate(config: Config, *, prompts: Sequence[Prompt]) -> None:
    pools = make_pools(config, placement=Placement(config=config), has_learner=False)
    try:
        await pools.start()
        evaluator = make_evaluator(config, prompts=prompts, pools=pools)
        async with pools.supervised():
            result = await evaluator.evaluate(policy_version=NO_POLICY_VERSION, is_final=True)
        print(as_json(result, config=config))
    finally:
        await pools.shutdown(seconds=_SHUTDOWN_SECONDS)


def as_json(result: EvaluationResult, *, config: Config) -> str:
    """The metrics of the evaluation under their names in a run, and what was evaluated."""
    values = {metric.name: metric.value for metric in result.metrics() if metric.name != "eval/policy_version"}
    return json.dumps({"model": config.model.path, "split": config.evaluation.split} | values)
