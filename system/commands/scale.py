"""`credence scale`: changes how many workers a run has, from another process on its Ray cluster, while it goes on.

The arguments are checked before Ray is imported: a mistake ends in one line at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from system.errors import ConfigError, CredenceError
from system.runtime.run_address import find_run

SECTIONS = ("rollout", "reward", "scorer")
ADDRESS_HELP = (
    "the run's Ray cluster: HOST:PORT on one of its nodes, ray://HOST:PORT from elsewhere; RUN may then be the name of "
    "the run. Default: what the run folder says, or RAY_ADDRESS"
)


def main(argv: Sequence[str]) -> int:
    """Ask for the change and print what it does. Raises CredenceError when it is refused or nobody answers."""
    parser = argparse.ArgumentParser(
        prog="credence scale",
        description="Change the number of workers of a run that goes on: rollout=4 reward=8 scorer=2. New ones start "
        "beside the run, load its weights and serve; those that are too many finish their groups and go.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, or its name with --address or RAY_ADDRESS")
    parser.add_argument("workers", nargs="+", metavar="KIND=NUMBER", help=f"KIND: {', '.join(SECTIONS)}")
    parser.add_argument(
        "--now", action="store_true", help="workers that go hand their groups back at once; others generate them again"
    )
    parser.add_argument("--address", metavar="HOST:PORT", help=ADDRESS_HELP)
    options = parser.parse_intermixed_args(list(argv))
    workers = dict(_read(text) for text in options.workers)

    found = find_run(options.run, address=options.address)
    found.prepare_ray()
    from system.runtime.run_control import ScaleAnswer, ScaleRequest
    from system.runtime.run_mailbox import mailbox_at

    with mailbox_at(found) as ask:
        answer: ScaleAnswer = ask("scale", ScaleRequest(workers=workers, now=options.now))
    if answer.refusal is not None:
        raise CredenceError(f"nothing is changed: {answer.refusal}")
    for change in answer.changes:
        print(f"{change.section}: {change.before} -> {change.after} {change.kind}s")
    print(f"See how it goes on with: credence status {options.run}")
    return 0


def _read(text: str) -> tuple[str, int]:
    """Section and number of `rollout=4`. Raises ConfigError."""
    section, equals, number = text.partition("=")
    if section not in SECTIONS:
        raise ConfigError.unknown("KIND=NUMBER", given=text if not equals else section, known=SECTIONS)
    if not number.isdecimal() or int(number) < 1:
        raise ConfigError(section, given=number, expected="a whole number of workers, at least 1", fix=f"{section}=2")
    return section, int(number)
