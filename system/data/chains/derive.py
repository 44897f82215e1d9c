"""Derive the chains from GSM8K's public solutions; the result is shipped beside this file.

    python -m system.data.chains.derive --train gsm8k/train.jsonl --test gsm8k/test.jsonl --out system/data/chains

Each worked solution carries calculator annotations, `<<48/2=24>> ... <<48+24=72>>`. Earlier results are substituted
into later ones, `48+(48/2)`. An expression is kept when its exact value is the published answer; training expressions
that occur in the test set, needless brackets aside, are left out. Only numbers and operators are written.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from system.data.chains.expressions import (
    NUMBER,
    ExpressionError,
    canonical_text,
    format_number,
    parse_expression,
    parse_number,
    solve,
)
from system.errors import ConfigError

MAX_EXPRESSION_CHARACTERS = 64
MAX_SOLUTION_CHARACTERS = 112
_ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_BRACKETED_NUMBER = re.compile(rf"\(({NUMBER.pattern})\)")


class RejectedSolution(ValueError):
    """A solution that gives no chain; the message is the reason that is counted."""


def compose(annotations: Sequence[tuple[str, str]]) -> str:
    """Substitute earlier results into later expressions: [(`48/2`, `24`), (`48+24`, `72`)] -> `48+(48/2)`.

    Raises RejectedSolution when there is nothing to compute or when the whole grows out of bounds.
    """
    composed: dict[Fraction, str] = {}

    def substitute(match: re.Match[str]) -> str:
        value = Fraction(match.group())
        return composed.get(value) or format_number(value) or match.group()

    text = ""
    for expression, result in annotations:
        text = _BRACKETED_NUMBER.sub(r"\1", NUMBER.sub(substitute, expression))
        if len(text) > MAX_EXPRESSION_CHARACTERS:
            # Checked at every step: substitution can double the text each time.
            raise RejectedSolution("expression too long")
        if NUMBER.fullmatch(result) and not NUMBER.fullmatch(text):
            composed[Fraction(result)] = f"({text})"
    if not text:
        raise RejectedSolution("no annotation")
    return text


def derive_expression(worked_solution: str) -> str:
    """The nested expression of one GSM8K solution. Raises RejectedSolution."""
    body, _, published = worked_solution.rpartition("####")
    annotations = [(left.replace(" ", ""), right.replace(" ", "")) for left, right in _ANNOTATION.findall(body)]
    text = compose(annotations)
    try:
        shape, leaves = parse_expression(text)
        if not shape.operations:
            raise RejectedSolution("no operation")
        solution = solve(shape, leaves=leaves)
        expected = parse_number(published.strip().replace(",", ""))
    except ExpressionError as error:
        raise RejectedSolution("does not evaluate") from error
    if parse_number(solution.answer) != expected:
        raise RejectedSolution("not the published answer")
    if len("\n".join((*solution.lines, f"#{solution.answer}"))) > MAX_SOLUTION_CHARACTERS:
        raise RejectedSolution("solution too long")
    return text


def read_solutions(path: Path, *, key: str) -> list[str]:
    """The `answer` field of each row of a GSM8K file. Raises ConfigError when the file is no such thing."""
    expected = "GSM8K's JSON lines with a text field 'answer'"
    fix = "download grade_school_math/data/{train,test}.jsonl of openai/grade-school-math"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        solutions = [row["answer"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(key, given=str(path), expected=expected, fix=fix) from error
    if not solutions or not all(isinstance(solution, str) for solution in solutions):
        raise ConfigError(key, given=str(path), expected=expected, fix=fix)
    return solutions


def derive_chains(
    solutions: Sequence[str], *, excluded: frozenset[str] = frozenset()
) -> tuple[list[str], Counter[str]]:
    """Expressions in the order of the solutions, and how many were kept or left out for which reason.

    `excluded` holds canonical texts that must not occur.
    """
    kept: list[str] = []
    counts: Counter[str] = Counter()
    for solution in solutions:
        try:
            expression = derive_expression(solution)
        except RejectedSolution as rejection:
            counts[str(rejection)] += 1
            continue
        if canonical_text(expression) in excluded:
            counts["occurs in the test set"] += 1
            continue
        counts["kept"] += 1
        kept.append(expression)
    return kept, counts


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m system.data.chains.derive", description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True, help="GSM8K train.jsonl")
    parser.add_argument("--test", type=Path, required=True, help="GSM8K test.jsonl")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for train.txt and test.txt")
    arguments = parser.parse_args(argv)
    try:
        test, test_counts = derive_chains(read_solutions(arguments.test, key="--test"))
        held_out = frozenset(canonical_text(expression) for expression in test)
        train, train_counts = derive_chains(read_solutions(arguments.train, key="--train"), excluded=held_out)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, expressions, counts in (("train", train, train_counts), ("test", test, test_counts)):
        (arguments.out / f"{name}.txt").write_text("".join(f"{text}\n" for text in expressions), encoding="ascii")
        print(f"{name}: {dict(counts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
