"""The `credence` command. Parses arguments, loads the configuration, and only then imports what does the work.

A mistake that the user can fix ends in one line on stderr and exit code 2, an interrupt in 130.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from system.config.load import dump_yaml, load_config, load_resumed_config, split_inputs, split_resume
from system.config.reference import reference_text
from system.config.schema import Config
from system.errors import ConfigError, CredenceError

_USAGE = """usage: credence COMMAND ...

  train CONFIG... [key=value...] [--dry-run] [--resume RUN_DIR]   train a policy
  evaluate ...                                                    accuracy of a policy on held-out problems
  select ...                                                      best of N by certainty, Borda, majority, chance
  certainty-report ...                                            certainty of right against wrong completions
  belief RUN_DIR [--group ID]                                     what the policy believed, step by step (BARL)
  warmstart ...                                                   build the small embedded policy from nothing
  config                                                          every configuration key with type and default
  --version

'credence COMMAND --help' says more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"credence {_version()}")
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "evaluate": _evaluate,
        "select": _select,
        "certainty-report": _certainty_report,
        "belief": _belief,
        "warmstart": _warmstart,
        "config": _config,
    }
    command = commands.get(arguments[0])
    if command is None:
        print(f"credence: unknown command {arguments[0]!r}, expected one of {', '.join(commands)}", file=sys.stderr)
        return 2
    try:
        return command(arguments[1:])
    except CredenceError as error:
        print(f"credence: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("credence: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, e.g. `credence config | head`
        sys.stderr.close()
        return 0


def _version() -> str:
    try:
        return version("credence-rl")
    except PackageNotFoundError:  # run from a working directory that was never installed
        return "from source"


def _train(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="credence train",
        description="Train a policy: configuration files are merged left to right, then key=value overrides.",
    )
    parser.add_argument("inputs", nargs="*", metavar="CONFIG|key=value", help="YAML files, then overrides")
    parser.add_argument(
        "--dry-run", action="store_true", help="print configuration, derivation and placement, and stop"
    )
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR[@UPDATE]",
        help="continue this run from its newest checkpoint, or from that of an update; "
        "its own configuration is read from there",
    )
    options = parser.parse_intermixed_args(arguments)
    paths, overrides = split_inputs(options.inputs)
    config = _load(paths, overrides=overrides, resume=options.resume)
    # Not before the configuration is known to be right: reading the embedded task takes a second.
    from system.commands.plan import plan_text

    if options.dry_run:
        print(dump_yaml(config))
    print(plan_text(config), flush=True)
    if options.dry_run:
        return 0
    from system.commands.train import main_train

    return main_train(config, resume=options.resume)


def _load(paths: Sequence[str], *, overrides: Sequence[str], resume: str | None) -> Config:
    if resume is not None:
        return load_resumed_config(split_resume(resume)[0], paths, overrides)
    if not paths:
        raise ConfigError(
            "CONFIG",
            given=" ".join(overrides),
            expected="at least one YAML file before the overrides",
            fix="e.g. credence train configs/demo.yaml",
        )
    return load_config(paths, overrides)


def _evaluate(arguments: list[str]) -> int:
    from system.commands.evaluate import main as evaluate_main

    return evaluate_main(arguments)


def _select(arguments: list[str]) -> int:
    from system.commands.select import main as select_main

    return select_main(arguments)


def _certainty_report(arguments: list[str]) -> int:
    from system.commands.certainty_report import main as certainty_report_main

    return certainty_report_main(arguments)


def _belief(arguments: list[str]) -> int:
    from system.commands.belief_report import main as belief_main

    return belief_main(arguments)


def _warmstart(arguments: list[str]) -> int:
    from system.commands.warmstart import main as warmstart_main

    return warmstart_main(arguments)


def _config(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="credence config", description="Print every configuration key with its type, its default and one sentence."
    )
    parser.parse_args(arguments)
    print(reference_text())
    return 0
