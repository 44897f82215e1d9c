"""`credence train` and `credence evaluate` until the configuration and the data are known to be right.

Imports what needs torch or Ray only afterwards: a mistake ends in one line within two seconds.
"""

import argparse
import sys
from collections.abc import Sequence

from system.config.load import dump_yaml, load_config, load_resumed_config, split_inputs, split_resume
from system.config.schema import Config
from system.errors import ConfigError


def train(arguments: Sequence[str]) -> int:
    """Train, or print the plan of it; returns the exit code. Raises CredenceError."""
    parser = _parser("train", "Train a policy: configuration files are merged left to right, then key=value overrides.")
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR[@UPDATE]",
        help="continue this run from its newest checkpoint, or from that of an update; "
        "its own configuration is read from there",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="start the run again, from its newest checkpoint, when its process dies or Ray is lost; at most N times",
    )
    options = parser.parse_intermixed_args(arguments)
    config = _load(options.inputs, command="train", resume=options.resume)
    if options.retries > 0 and not options.dry_run:
        from system.commands.retries import train_with_retries

        return train_with_retries(options.inputs, resume=options.resume, run=config.run, retries=options.retries)
    from system.commands.plan import plan_text  # the tasks behind it take longer to import than all that is above

    _print_plan(config, plan_text(config), is_dry_run=options.dry_run)
    if options.dry_run:
        return 0
    from system.commands.train import main_train

    return main_train(config, resume=options.resume)


def evaluate(arguments: Sequence[str]) -> int:
    """Evaluate, or print what would be evaluated; returns the exit code. Raises CredenceError."""
    parser = _parser(
        "evaluate",
        "Accuracy of model.path on evaluation.num_problems_final held-out problems, as one line of JSON. A run folder "
        "stands for the policy of its newest checkpoint: model.path=runs/demo.",
    )
    options = parser.parse_intermixed_args(arguments)
    config = _load(options.inputs, command="evaluate", resume=None)
    from system.commands.plan import evaluation_text

    if options.dry_run:
        _print_plan(config, evaluation_text(config), is_dry_run=True)
        return 0
    print(evaluation_text(config), file=sys.stderr)  # an engine takes its time to start; stdout holds the result alone
    from system.commands.evaluate import main_evaluate

    return main_evaluate(config)


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"credence {command}", description=description)
    parser.add_argument("inputs", nargs="*", metavar="CONFIG|key=value", help="YAML files, then overrides")
    parser.add_argument(
        "--dry-run", action="store_true", help="check configuration and data, print what would run, and stop"
    )
    return parser


def _load(inputs: Sequence[str], *, command: str, resume: str | None) -> Config:
    paths, overrides = split_inputs(inputs)
    if resume is not None:
        return load_resumed_config(split_resume(resume)[0], paths, overrides)
    if not paths:
        raise ConfigError(
            "CONFIG",
            given=" ".join(overrides),
            expected="at least one YAML file before the overrides",
            fix=f"e.g. credence {command} configs/demo.yaml",
        )
    return load_config(paths, overrides)


def _print_plan(config: Config, text: str, *, is_dry_run: bool) -> None:
    if is_dry_run:
        print(dump_yaml(config))
    print(text, flush=True)
