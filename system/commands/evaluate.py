"""`credence evaluate`: held-out accuracy of a policy as it is, with the workers of a run but without a learner."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence

from actors.rollout.worker import NO_POLICY_VERSION
from system.commands.train import load_tokenizer, make_evaluator
from system.config.load import load_config, split_inputs
from system.config.schema import Config
from system.data.tasks import make_task
from system.runtime.evaluator import EvaluationResult
from system.runtime.placement import Placement
from system.runtime.pools import make_pools
from system.runtime.session import run_on_ray

_SHUTDOWN_SECONDS = 5.0


def main(argv: Sequence[str]) -> int:
    """Print the accuracies as one line of JSON; returns the exit code. Raises ConfigError."""
    parser = argparse.ArgumentParser(
        prog="credence evaluate",
        description="Accuracy of model.path on evaluation.num_problems_final held-out problems. A checkpoint's policy "
        "is a model too: model.path=RUN_DIR/checkpoints/update_000100/policy.",
    )
    parser.add_argument("arguments", nargs="+", metavar="CONFIG|key=value")
    config = load_config(*split_inputs(parser.parse_args(list(argv)).arguments))
    stopped_by = run_on_ray(config, lambda: _evaluate(config))
    return 0 if stopped_by is None else 128 + stopped_by


async def _evaluate(config: Config) -> None:
    pools = make_pools(config, placement=Placement(config=config), has_learner=False)
    try:
        await pools.start(config)
        task, tokenizer = make_task(config.task), load_tokenizer(config)
        evaluator = make_evaluator(config, task=task, tokenizer=tokenizer, pools=pools)
        async with asyncio.TaskGroup() as tasks:
            replacing = tasks.create_task(pools.rollouts.replace_loop(config.rollout.num_workers))
            result = await evaluator.evaluate(policy_version=NO_POLICY_VERSION, is_final=True)
            replacing.cancel()
        print(as_json(result, config=config))
    finally:
        await pools.shutdown(seconds=_SHUTDOWN_SECONDS)


def as_json(result: EvaluationResult, *, config: Config) -> str:
    """The metrics of the evaluation under their names in a run, and what was evaluated."""
    values = {metric.name: metric.value for metric in result.metrics() if metric.name != "eval/policy_version"}
    return json.dumps({"model": config.model.path, "split": config.evaluation.split} | values)
