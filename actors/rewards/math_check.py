r"""Is a mathematical answer, in LaTeX or plain text, equal to the reference? Runs in a sandbox child.

    text --plain_text, read_answer_text--> values      numbers as exact rationals, words as words
                                                       the rest by sympy, as math-verify compares it, without rounding
Numbers written with digits count at their own precision: `0.333333` is not `1/3`. An answer with more values than the
reference is wrong. math-verify's own time limits use signals and are switched off: the sandbox's limit is the only
one, it also ends C code, and a limit that ends in "wrong" would be a silent zero.
"""

import logging
import re
from fractions import Fraction
from functools import lru_cache

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import Expr, Rational

from actors.rewards.answer_values import (
    DOTS,
    Answer,
    Collection,
    Form,
    UnreadableError,
    Value,
    as_list,
    based_number,
    exact_number,
    letters_of,
    read_answer_text,
    words_of,
)

# The library warns once about the missing limit and logs every failed parse with a traceback.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

_NUMERIC_DIGITS = 40  # of values that no simplification decides
_NORMALISATION = NormalizationConfig(basic_latex=True, malformed_operators=True, boxed="none")
# `2 3` is no mixed number here (they were read before), and `2(3)` is a product
_CONVERSION = ConversionConfig(interpret_as_mixed_fractions=False)
_DECIMAL = re.compile(
    r"(?<![\w}.])(\d*)\.(\d+)(?:[eE]([+-]?\d{1,3}))?(?![\d.])|(?<![\w.}\\])(\d+)[eE]([+-]?\d{1,3})(?!\w)"
)
_MIXED = re.compile(r"(?<![\w}.^_])(\d+)\s*(\\frac\s*\{\d+\}\s*\{\d+\}|(?<=\s)\d+/\d+)")
_PYTHON_NAMES = re.compile(r"\b(?:np|numpy|math|sympy)\.(?=[a-z])")
_ROOT = re.compile(r"(?<![A-Za-z])\\?sqrt\s*\(((?:[^()]|\([^()]*\))*)\)")
_BARE_FUNCTION = re.compile(
    r"(?<![A-Za-z\\])(?:(a|arc)(?=sin|cos|tan))?(sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp)(?=\s*[({\s\d])"
)
_DEGREES = re.compile(r"(?<=(?:sin|cos|tan|cot|sec|csc))\s*(\d+)\s*\^\s*\{?\s*\\circ\s*\}?")
_RELATION = re.compile(r"[<>]|\\(?:leq?|geq?|neq?|lt|gt)(?![a-zA-Z])")


def check_math(answer: str, reference: str) -> tuple[str, float, str]:
    r"""Verdict on an answer that was already extracted from its response (the inside of `\boxed{}`).

    Returns:
        ("ok", 1.0, "right"), ("ok", 0.0, "wrong"), ("ok", 0.0, "unparseable") for an answer that cannot be read as
        mathematics or words, or ("invalid", 0.0, "unparseable_reference"). A reference that is no mathematics is
        compared as text.
    """
    if not _key(reference):
        return "invalid", 0.0, "unparseable_reference"
    if _key(answer) == _key(reference):
        return "ok", 1.0, "right"
    try:
        given = read_answer_text(answer)
    except UnreadableError:
        return "ok", 0.0, "unparseable"
    try:
        expected = read_answer_text(reference)
    except UnreadableError:
        return "ok", 0.0, "wrong"
    try:
        return ("ok", 1.0, "right") if _is_equal(expected, given) else ("ok", 0.0, "wrong")
    except (UnreadableError, RecursionError):
        return "ok", 0.0, "unparseable"


def _key(text: str) -> str:
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)|\$|(?<!\.)\.$", "", text.strip())


def _is_equal(expected: Answer, given: Answer) -> bool:
    if isinstance(expected, Value) and isinstance(given, Value):
        return _is_same_value(expected, given)
    expected_list = expected if isinstance(expected, Collection) else as_list(expected)
    given_list = given if isinstance(given, Collection) else as_list(given)
    if expected_list is not None and given_list is not None:
        return _is_same_collection(expected_list, given_list)
    lone = next((each for each in (expected, given) if isinstance(each, Collection)), None)
    if lone is not None and len(lone.items) == 1 and not lone.is_open and lone.brackets == "":
        pair = [each.items[0] if isinstance(each, Collection) else each for each in (expected, given)]
        return _is_equal(*pair)
    if _RELATION.search(expected.source) or _RELATION.search(given.source):  # an inequality and the interval it means
        return _is_same_expression(expected.source, given.source)
    return _is_same_words(expected.source, given.source)


def _is_same_collection(expected: Collection, given: Collection) -> bool:
    if expected.is_open or given.is_open or len(expected.items) != len(given.items):
        return _key(expected.source) == _key(given.source)
    kinds = {expected.brackets, given.brackets}
    if len(kinds) == 2 and kinds != {"", "()"}:
        return False
    if kinds not in ({""}, {"cup"}):
        return all(map(_is_equal, expected.items, given.items))
    waiting = list(given.items)
    for item in expected.items:
        match = next((each for each in waiting if _is_equal(item, each)), None)
        if match is None:
            return False
        waiting.remove(match)
    return True


def _is_same_value(expected: Value, given: Value) -> bool:
    if _is_same_words(expected.source, given.source):
        return True
    if not (expected.name and given.name and expected.name != given.name) and all(
        _is_same_form(wanted, form) for wanted in expected.forms for form in given.forms
    ):
        return True
    is_equation = all(each.name or len(each.forms) > 1 for each in (expected, given))
    if is_equation and max(len(each.forms) for each in (expected, given)) > 1:  # `x + y = 3` against `y = 3 - x`
        return _is_same_expression(expected.source, given.source)
    return False


def _is_same_form(expected: Form, given: Form) -> bool:
    has_percent = [form.unit == "percent" for form in (expected, given)]
    if expected.unit and given.unit and expected.unit != given.unit and not any(has_percent):
        return False
    based = [based_number(form.text) for form in (expected, given)]
    if any(based):
        return based[0] == based[1]
    numbers = [exact_number(form.text) for form in (expected, given)]
    if numbers[0] is not None and numbers[1] is not None:
        wanted, number = numbers[0] * expected.factor, numbers[1] * given.factor
        # `20` and `20\%` both answer a question for a percentage; and as a number 20 % is 0.2
        if has_percent == [True, False]:
            return number in (wanted, wanted / 100)
        return number in (wanted, wanted * 100) if has_percent == [False, True] else number == wanted
    if expected.factor != given.factor:
        return False
    if _key(expected.text) == _key(given.text) or _is_same_words(expected.text, given.text):
        return True
    if words_of(expected.text) is not None or "\\text" in given.text:
        return False
    return _is_same_expression(expected.text, given.text)


def _is_same_words(expected: str, given: str) -> bool:
    if words_of(expected) is None and words_of(given) is None:
        return False
    letters = letters_of(expected)
    return letters is not None and letters == letters_of(given)


def _is_same_expression(expected: str, given: str) -> bool:
    """By sympy. Raises UnreadableError for a given text that is no mathematics; an expected one is then not equal."""
    wanted, form = _parse(expected), _parse(given)
    if form is None:
        raise UnreadableError(given)
    if wanted is None:
        return False
    if _differ_at_a_point(wanted, form):
        return False
    # What sympy raises on nonsense ends in False here; memory that ran out shows in the child's own watch.
    return verify(
        [wanted], [form], numeric_precision=_NUMERIC_DIGITS, timeout_seconds=None, allow_set_relation_comp=True
    )


def _differ_at_a_point(one: object, other: object) -> bool:
    """Whether two formulas have clearly different values where each variable has some positive value.

    Most wrong formulas end here, before simplification, which may take minutes to tell that two formulas differ.
    """
    if not isinstance(one, Expr) or not isinstance(other, Expr):
        return False
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    place = {symbol: Rational(12 * index + 17, 9 * index + 11) for index, symbol in enumerate(symbols)}
    try:
        values = [complex(each.doit().subs(place).evalf(30)) for each in (one, other)]
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
        return False  # no number, or none that sympy can compute: the comparison has to decide
    difference = abs(values[0] - values[1])
    return difference > 1e-6 * max(1.0, *map(abs, values))  # false also for NaN


@lru_cache(maxsize=64)
def _parse(text: str) -> object | None:
    latex = _latex(text)
    if re.search(r"\d\s+\d|\\text|[_]\s*$", latex) or DOTS.search(latex):
        return None
    try:
        return latex2sympy(
            latex,
            is_real=not should_treat_as_complex(latex),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=_CONVERSION,
        )
    except MemoryError:
        raise
    # The parser raises whatever it likes on nonsense; this is where untrusted model output is isolated.
    except Exception:  # noqa: BLE001
        return None


def _latex(text: str) -> str:
    """The text as the parser reads it right: decimals as exact fractions, mixed numbers as sums, products spelt out."""
    text = _PYTHON_NAMES.sub("", text)
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1]}}}", text)
    text = _BARE_FUNCTION.sub(lambda name: f"\\{'arc' if name[1] else ''}{name[2]} ", text)
    text = re.sub(r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi ", text)
    text = re.sub(r"(?<![A-Za-z\\])infinity(?![A-Za-z])", r"\\infty ", text)
    text = _DEGREES.sub(r"\\frac{\1 \\cdot \\pi}{180}", normalize_latex(text, _NORMALISATION))
    text = _MIXED.sub(r"(\1+\2)", text)
    text = _DECIMAL.sub(_fraction_of_decimal, text)
    text = text.replace("*", r" \cdot ")
    return re.sub(r"(?<=[\d)])\s*(?=\((?!\d+\)_))", r" \\cdot ", text)


def _fraction_of_decimal(match: re.Match[str]) -> str:
    whole, decimals, exponent = match[1] or match[4] or "", match[2] or "", int(match[3] or match[5] or 0)
    value = Fraction(int((whole + decimals) or 0), 10 ** len(decimals)) * Fraction(10) ** exponent
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


# Grammar tables and sympy's modules are loaded on first use, up to a second on a busy machine: done while the
# child starts, so that it does not count against the first answer's limit.
check_math(r"\frac{(x+1)^2}{2}", reference=r"\frac{x^2+2x+1}{2}")
