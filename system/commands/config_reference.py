"""`credence config`: the reference of the configuration, as text or as the page docs/configuration.md."""

import argparse
from collections.abc import Sequence

from system.config.reference import reference_markdown, reference_text


def main(argv: Sequence[str]) -> int:
    """Print the reference; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="credence config",
        description="Print every configuration key with its type, its bounds, its default and one sentence.",
    )
    parser.add_argument("--markdown", action="store_true", help="as tables: what docs/configuration.md holds")
    print(reference_markdown() if parser.parse_args(list(argv)).markdown else reference_text())
    return 0
