"""Exact comparison of two rational numbers written by a model and a reference. Runs in a sandbox child."""

import re
from fractions import Fraction

MAX_NUMBER_CHARACTERS = 256
_MAX_EXPONENT_DIGITS = 3

# ASCII digits only: \d would admit every script's digits, and int() reads them.
_DECIMAL = rf"(?:[0-9]{{1,3}}(?:,[0-9]{{3}})+|[0-9]+)?(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{{1,{_MAX_EXPONENT_DIGITS}}})?"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)(?:\\?\$)?(?P<numerator>{_DECIMAL})(?:/(?P<denominator>{_DECIMAL}))?(?:\\?%)?\.?"
)


def check_rational(answer: str, reference: str) -> tuple[str, float, str]:
    """("ok", 1.0, "right"), ("ok", 0.0, "wrong" | "unparseable") or ("invalid", 0.0, "unparseable_reference")."""
    expected = parse_rational(reference)
    if expected is None:
        return "invalid", 0.0, "unparseable_reference"
    given = parse_rational(answer)
    if given is None:
        return "ok", 0.0, "unparseable"
    return ("ok", 1.0, "right") if given == expected else ("ok", 0.0, "wrong")


def parse_rational(text: str) -> Fraction | None:
    """The exact value of a number as people write it, or None.

    Accepted: integers, decimals, `1e3`, a quotient of two of those (`1/2`), a sign (also U+2212), thousands
    commas in groups of three, a leading dollar sign, a trailing per cent sign (dropped, not applied: a
    question for a percentage is answered by "20" and by "20%") and a trailing full stop. Blanks around the
    number and around `/` and the sign are skipped.

    The work is bounded: at most 256 characters and three digits of exponent, so no integer here exceeds
    about 1,300 digits. A number beyond that is None, as is a zero denominator.
    """
    if len(text) > MAX_NUMBER_CHARACTERS:
        return None
    compact = re.sub(r" *([/+-]) *", r"\1", text.strip().replace("\u2212", "-"))
    match = _NUMBER.fullmatch(compact)
    if match is None:
        return None
    numerator = _parse_decimal(match["numerator"])
    denominator = Fraction(1) if match["denominator"] is None else _parse_decimal(match["denominator"])
    if numerator is None or not denominator:
        return None
    value = numerator / denominator
    return -value if match["sign"] == "-" else value


def _parse_decimal(text: str) -> Fraction | None:
    mantissa = re.split("[eE]", text)[0]
    if not any(character.isdigit() for character in mantissa):
        return None
    # Fraction accepts "1." only from Python 3.12 on, and ".5" everywhere.
    exponent = text[len(mantissa) :]
    return Fraction(mantissa.replace(",", "").rstrip(".") + exponent)
