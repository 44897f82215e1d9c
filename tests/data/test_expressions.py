"""Parser and exact evaluator against numbers worked out by hand."""

from fractions import Fraction

import pytest

from system.data.chains.expressions import (
    ExpressionError,
    canonical_text,
    format_number,
    parse_expression,
    solve,
)


def solve_text(text: str) -> tuple[tuple[str, ...], str]:
    shape, leaves = parse_expression(text)
    solution = solve(shape, leaves=leaves)
    return solution.lines, solution.answer


@pytest.mark.parametrize(
    ("text", "lines", "answer"),
    [
        ("48+(48/2)", ("48/2=24", "48+24=72"), "72"),
        ("10-4-3", ("10-4=6", "6-3=3"), "3"),
        ("2+3*4", ("3*4=12", "2+12=14"), "14"),
        ("8/2*3", ("8/2=4", "4*3=12"), "12"),
        ("0.1+0.2", ("0.1+0.2=0.3",), "0.3"),
        ("5-8", ("5-8=-3",), "-3"),
        ("4-(5-8)", ("5-8=-3", "4--3=7"), "7"),
        ("7/8", ("7/8=0.875",), "0.875"),
    ],
)
def test_solution_is_written_one_operation_a_line(text: str, lines: tuple[str, ...], answer: str) -> None:
    assert solve_text(text) == (lines, answer)


def test_operation_without_finite_decimal_stays_inside_the_next_line() -> None:
    assert solve_text("(1/3)*60") == (("1/3*60=20",), "20")
    assert solve_text("60*(1/3)+5") == (("60*(1/3)=20", "20+5=25"), "25")


def test_result_used_twice_is_computed_once() -> None:
    assert solve_text("(4*2)+(4*2)") == (("4*2=8", "8+8=16"), "16")


def test_canonical_text_drops_only_needless_brackets() -> None:
    assert canonical_text("((4*6))+(12)") == "4*6+12"
    assert canonical_text("(4+6)*12") == "(4+6)*12"
    assert canonical_text("10-(4-3)") == "10-(4-3)"
    assert canonical_text("48+(48/2)") == canonical_text("48+48/2")


@pytest.mark.parametrize(
    "text",
    ["", "1+", "(1+2", "1+2)", "+3", "1//2", "2**3", "1 + 2", "one", "__import__('os')", "1,000+2", "(" * 5000 + "1"],
)
def test_text_that_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse_expression(text)


@pytest.mark.parametrize("text", ["3/0", "4/(2-2)", "1/3"])
def test_value_that_cannot_be_written_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        solve_text(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(Fraction(72), "72"), (Fraction(-1, 4), "-0.25"), (Fraction(1, 1000), "0.001"), (Fraction(1, 3), None)],
)
def test_numbers_are_written_as_shortest_exact_decimals(value: Fraction, text: str | None) -> None:
    assert format_number(value) == text
