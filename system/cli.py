"""The `credence` command: a table of commands. What a command needs is imported only when it is called.

A mistake that the user can fix ends in one line on stderr and exit code 2, an interrupt in 130.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from system.errors import CredenceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A function of the arguments that returns the exit code, as `module:name`, and its line of the help."""

    function: str
    arguments: str
    sentence: str


COMMANDS = {
    "train": Command(
        function="system.commands.start:train",
        arguments="CONFIG... [key=value...] [--dry-run] [--resume RUN_DIR[@UPDATE]]",
        sentence="train a policy",
    ),
    "evaluate": Command(
        function="system.commands.start:evaluate",
        arguments="CONFIG... [key=value...] [--dry-run]",
        sentence="accuracy of a policy on held-out problems",
    ),
    "select": Command(
        function="system.commands.select:main",
        arguments="CONFIG... [key=value...]",
        sentence="best of N by certainty, Borda, majority, chance",
    ),
    "compare": Command(
        function="system.commands.compare:main",
        arguments="[LABEL=]RUN_DIR,... [--figure PNG]",
        sentence="table and figure of several runs",
    ),
    "certainty-report": Command(
        function="system.commands.certainty_report:main",
        arguments="RUN_DIR|FILE|CONFIG...",
        sentence="certainty of right against wrong completions",
    ),
    "replay": Command(
        function="system.commands.replay.main:main",
        arguments="RUN_DIR [--step N] [--model FOLDER] [--json]",
        sentence="compute a recorded update again, print what differs",
    ),
    "belief": Command(
        function="system.commands.barl.report:main",
        arguments="RUN_DIR [--group ID]",
        sentence="what the policy believed, step by step (BARL)",
    ),
    "triplets-report": Command(
        function="system.commands.triplets_report:main",
        arguments="[LABEL=]RUN_DIR,... [--figure PNG]",
        sentence="what was learned on the triplets task",
    ),
    "warmstart": Command(
        function="system.commands.warmstart:main",
        arguments="[key=value...]",
        sentence="build the small embedded policy from nothing",
    ),
    "doctor": Command(
        function="system.commands.doctor:main",
        arguments="[--address HOST:PORT] [RUN_DIR] [CONFIG... key=value...]",
        sentence="what is wrong with the machines before a run",
    ),
    "metrics": Command(
        function="system.commands.metrics_reference:main",
        arguments="[--markdown]",
        sentence="every metric and what it means",
    ),
    "config": Command(
        function="system.commands.config_reference:main",
        arguments="[--markdown]",
        sentence="every configuration key with type, bounds and default",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"credence {_version()}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"credence: unknown command {arguments[0]!r}, {_meant(arguments[0])}", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[arguments[0]].function.partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(arguments[1:]))
    except CredenceError as error:
        print(f"credence: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("credence: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, e.g. `credence config | head`
        sys.stderr.close()
        return 0


def usage() -> str:
    """The help: every command with its arguments and one sentence."""
    lines = [f"  {f'{name} {command.arguments}':<76}{command.sentence}".rstrip() for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: credence COMMAND ...", "", *lines, "  --version", "", "'credence COMMAND --help' says more."]
    )


def _meant(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"


def _version() -> str:
    try:
        return version("credence-rl")
    except PackageNotFoundError:  # run from a working directory that was never installed
        return "from source"
