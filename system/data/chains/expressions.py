"""Nested arithmetic expressions in exact rational arithmetic: parse, solve, write out as steps.

Used by the chains task, its redraw and the derive command. Nothing is ever given to `eval`.

An expression is a shape, `{}+({}/{})`, and its leaf numbers, `("48", "48", "2")`. The solution has one line for each
operation whose value is a finite decimal; an operation without one (`1/3` in `1/3*60`) stays unevaluated inside the
line of the operation above it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|[-+*/()]")
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_ATOM = 3  # binds tighter than any operator
MAX_BRACKETS = 64  # bounds the recursion


class ExpressionError(ValueError):
    """The text is no arithmetic expression, it divides by zero, or its value is no finite decimal."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Operand n < num_leaves is leaf n; operand num_leaves + i is the result of operation i."""

    operator: str
    left: int
    right: int


@dataclass(frozen=True, slots=True)
class Shape:
    """An expression without its numbers. Operations stand in the order of solving; the last one is the root."""

    template: str  # `{}+({}/{})`, brackets as written
    canonical_template: str  # `{}+{}/{}`, only the brackets that are needed
    num_leaves: int
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Solution:
    """`results` holds the exact result of each operation; `lines` the steps, `48/2=24`."""

    results: tuple[Fraction, ...]
    lines: tuple[str, ...]
    answer: str


def split_leaves(text: str) -> tuple[str, tuple[str, ...]]:
    """`48+(48/2)` -> (`{}+({}/{})`, (`48`, `48`, `2`))."""
    return NUMBER.sub("{}", text), tuple(NUMBER.findall(text))


def parse_number(text: str) -> Fraction:
    """Exact value of a decimal number. Raises ExpressionError when it is none."""
    if not NUMBER.fullmatch(text.removeprefix("-")):
        raise ExpressionError(f"not a decimal number: {text[:80]!r}")
    return Fraction(text)


def decimal_places(value: Fraction) -> int | None:
    """Digits after the point, or None when the decimal expansion does not end."""
    denominator, twos, fives = value.denominator, 0, 0
    while denominator % 2 == 0:
        denominator, twos = denominator // 2, twos + 1
    while denominator % 5 == 0:
        denominator, fives = denominator // 5, fives + 1
    return max(twos, fives) if denominator == 1 else None


def format_number(value: Fraction) -> str | None:
    """Shortest exact decimal, `-0.25`, or None when the decimal expansion does not end."""
    places = decimal_places(value)
    if places is None:
        return None
    scaled = abs(value.numerator) * 10**places // value.denominator
    digits = str(scaled).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (digits if places == 0 else f"{digits[:-places]}.{digits[-places:]}")


def apply_operator(operator: str, left: Fraction, right: Fraction) -> Fraction:
    """Exact result. Raises ExpressionError on division by zero."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    if right == 0:
        raise ExpressionError("division by zero")
    return left / right


def _join(operator: str, left: tuple[str, int], right: tuple[str, int]) -> tuple[str, int]:
    """Write `left operator right` with the brackets it needs; texts come with their precedence."""
    precedence = _PRECEDENCE[operator]
    left_text = left[0] if left[1] >= precedence else f"({left[0]})"
    right_text = right[0] if right[1] > precedence else f"({right[0]})"
    return f"{left_text}{operator}{right_text}", precedence


class _Parser:
    """Recursive descent over `+ - * / ( )` and numbers; operations are appended in the order of solving."""

    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)
        if "".join(self._tokens) != text or not text:
            raise ExpressionError(f"not an arithmetic expression: {text[:80]!r}")
        self._next = 0
        self._num_brackets = 0
        self._num_leaves_seen = 0
        self.num_leaves = sum(NUMBER.fullmatch(token) is not None for token in self._tokens)
        self.operations: list[Operation] = []

    def parse(self) -> int:
        root = self._parse_level(1)
        if self._next != len(self._tokens):
            raise ExpressionError(f"unexpected {self._tokens[self._next]!r}")
        return root

    def _take(self) -> str:
        if self._next == len(self._tokens):
            raise ExpressionError("the expression ends too early")
        self._next += 1
        return self._tokens[self._next - 1]

    def _parse_level(self, precedence: int) -> int:
        if precedence == _ATOM:
            return self._parse_atom()
        left = self._parse_level(precedence + 1)
        while self._next < len(self._tokens) and _PRECEDENCE.get(self._tokens[self._next]) == precedence:
            operator = self._take()
            right = self._parse_level(precedence + 1)
            self.operations.append(Operation(operator, left, right))
            left = self.num_leaves + len(self.operations) - 1
        return left

    def _parse_atom(self) -> int:
        token = self._take()
        if NUMBER.fullmatch(token):
            self._num_leaves_seen += 1
            return self._num_leaves_seen - 1
        if token != "(":
            raise ExpressionError(f"expected a number or '(', found {token!r}")
        self._num_brackets += 1
        if self._num_brackets > MAX_BRACKETS:
            raise ExpressionError(f"more than {MAX_BRACKETS} brackets")
        node = self._parse_level(1)
        if self._take() != ")":
            raise ExpressionError("a bracket is not closed")
        return node


@lru_cache(maxsize=16384)
def _parse_template(template: str) -> Shape:
    parser = _Parser(template.replace("{}", "1"))
    parser.parse()
    written = [("{}", _ATOM)] * parser.num_leaves
    for operation in parser.operations:
        written.append(_join(operation.operator, written[operation.left], written[operation.right]))
    return Shape(template, written[-1][0], parser.num_leaves, tuple(parser.operations))


def parse_expression(text: str) -> tuple[Shape, tuple[str, ...]]:
    """Shape and leaf numbers of an expression without blanks. Raises ExpressionError."""
    template, leaves = split_leaves(text)
    return _parse_template(template), leaves


def canonical_text(text: str) -> str:
    """The expression with only the brackets it needs: equal for texts that mean the same computation."""
    shape, leaves = parse_expression(text)
    return shape.canonical_template.format(*leaves)


def solve(shape: Shape, *, leaves: Sequence[str]) -> Solution:
    """Solve step by step. Raises ExpressionError on division by zero or when the answer is no finite decimal."""
    values = [Fraction(leaf) for leaf in leaves]
    written = [(leaf, _ATOM) for leaf in leaves]
    lines: list[str] = []
    for operation in shape.operations:
        value = apply_operator(operation.operator, values[operation.left], values[operation.right])
        text = _join(operation.operator, written[operation.left], written[operation.right])
        result = format_number(value)
        values.append(value)
        if result is None:
            written.append(text)
            continue
        written.append((result, _ATOM))
        line = f"{text[0]}={result}"
        if line not in lines:  # a result that is used twice is computed once
            lines.append(line)
    answer = format_number(values[-1])
    if answer is None:
        raise ExpressionError("the value is no finite decimal")
    return Solution(tuple(values[shape.num_leaves :]), tuple(lines), answer)
