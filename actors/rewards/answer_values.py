r"""What an answer says: one value, or a collection of values. Read from text; nothing is computed but plain numbers.

    `x = 3`             one value, 3, called x
    `3 = 4`             one value with two forms; it equals a reference only where all its forms do
    `1, 2`, `\{1, 2\}`  values in any order;  `(1, 2)`, `[1, 2)`, `1:2`  in this order;  `1, 2, \ldots`  never one value
Used by `math_check.py` in a sandbox child.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from actors.rewards.answer_text import is_word, plain_text, split_unit
from actors.rewards.rational_check import parse_rational

MAX_DEPTH = 60
_OPENING, _CLOSING = "([{", ")]}"
_OR = re.compile(
    r"\s*(?:,\s*)?(?:\\text\{\s*,?\s*(?:or|and)\s*\}|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])|\\(?:lor|vee)(?![a-zA-Z]))\s*"
)
_LIST = re.compile(r"[,;]")
_CUP = re.compile(r"\\cup(?![a-zA-Z])")
_COLON = re.compile(r"(?:\\colon(?![a-zA-Z])|:)(?!=)")
_EQUALS = re.compile(r"(?<![<>!:\\])=(?!=)|\\(?:approx|simeq|equiv|cong)(?![a-zA-Z])|:=")
DOTS = re.compile(r"\.{3}|\\(?:[lcv]?dots[cbmio]?)(?![a-zA-Z])|\\text\{\s*etc\.?\s*\}")
_MEMBER = re.compile(r"[A-Za-z](?:_\{?\w\}?)?\s*\\in(?![a-zA-Z])\s*(.*)", re.DOTALL)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_FRACTION = re.compile(
    r"([+-]?)\s*(\d+(?:\s*|\s*\+\s*|-and-))?\\frac\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))"
)
_REPEATING = re.compile(r"([+-]?)(\d{0,50})\.(\d{0,50})\\(?:overline|bar|dot)\s*\{(\d{1,50})\}")
_MIXED = re.compile(r"([+-]?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)")
_SCIENTIFIC = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+))\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|([+-]?\d{1,3})))?"
)
_POWER_OF_TEN = re.compile(r"([+-]?)10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|(\d{1,3}))")
_BASED = re.compile(r"(-?)\s*(?:\\text\{)?([0-9A-Za-z]+)\}?\s*_\s*(?:\{\s*(?:\\text\{)?(\w+)\}?\s*\}|(\d))")
_CONSTANTS = re.compile(r"\\(?:pi|infty|emptyset|varnothing)(?![a-zA-Z])|\\mathbb")
_SUBSCRIPTS = re.compile(r"_\s*(?:\{[^{}]*\}|\\?\w)|(?<![\w}])\\?[A-Za-z]+'*\s*\([^()]*\)|\\text\{[^{}]*\}|'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to write a value."""

    text: str  # without the unit
    unit: str  # "" for none, or for one that is no known unit
    factor: int  # of "million"


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One value. `forms` are the sides of an equation that are no mere names, or the whole without one."""

    source: str
    forms: tuple[Form, ...]
    name: str  # the single letter that the value is said to be of, or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    source: str
    items: "tuple[Value | Collection, ...]"
    brackets: str  # "" any order; "()", "[)", ... in this order, an interval's; ":" a ratio or time; "cup" a union
    is_open: bool = False  # ends in dots


Answer = Value | Collection


class UnreadableError(ValueError):
    """Brackets that do not match, or nest too deeply."""


def read_answer_text(text: str) -> Answer:
    """Raises UnreadableError."""
    plain = plain_text(text)
    if not plain or not plain.isascii() or not plain.isprintable():
        raise UnreadableError(text)
    return _read(plain, depth=0)


def as_list(answer: Answer) -> Collection | None:
    """A number with thousands commas read as the list that it may be: `100,200`."""
    if isinstance(answer, Value) and _THOUSANDS.fullmatch(answer.source):
        items = tuple(_read_value(part) for part in answer.source.split(","))
        return Collection(source=answer.source, items=items, brackets="")
    return None


def _read(text: str, *, depth: int) -> Answer:
    member = _MEMBER.fullmatch(text)
    text = (member[1] if member is not None else text).strip()
    if text == r"\mathbb{R}":
        text = r"(-\infty, \infty)"
    if _THOUSANDS.fullmatch(split_unit(text)[0]):
        return _read_value(text)
    parts = [part for piece in split_top(text, _OR) for part in split_top(piece, _LIST)]
    if len(parts) > 1:
        return _collection(text, parts, brackets="", depth=depth)
    for pattern, kind in ((_CUP, "cup"), (_COLON, ":")):
        parts = split_top(text, pattern)
        if len(parts) > 1 and (kind == "cup" or all(exact_number(split_unit(part)[0]) is not None for part in parts)):
            return _collection(text, parts, brackets=kind, depth=depth)
    if text.count(r"\pm") == 1:
        signs = [re.sub(r"\\pm(?![a-zA-Z])", each, text) for each in "+-"]
        signed = [re.sub(r"^\s*\+|(?<=[=(])\s*\+", "", each) for each in signs]
        return _collection(text, signed, brackets="", depth=depth)
    return _read_enclosed(text, depth=depth) or _read_value(text)


def _read_enclosed(text: str, *, depth: int) -> Answer | None:
    text = re.sub(r"^\\lbrace(?![a-z])(.*)\\rbrace$", r"\{\1\}", text, flags=re.DOTALL)
    if text.startswith("\\{") and text.endswith("\\}") and closing_of(text[1:]) == len(text) - 2:
        inside = text[2:-2].strip()
        if not inside or re.search(r"\\mid|\||:", inside):
            return None
        return _collection(inside, split_top(inside, _LIST), brackets="", depth=depth)
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]" or closing_of(text) != len(text) - 1:
        return None
    parts = split_top(text[1:-1], _LIST)
    if len(parts) < 2:
        return None
    return _collection(text, parts, brackets=text[0] + text[-1], depth=depth)


def _collection(source: str, parts: list[str], *, brackets: str, depth: int) -> Collection:
    if depth > MAX_DEPTH:
        raise UnreadableError(source)
    is_open = any(DOTS.search(part) for part in parts)
    items: list[Answer] = []
    for part in parts:
        if not part.strip() or DOTS.fullmatch(part.strip()):
            continue
        item = _read(part.strip(), depth=depth + 1)
        if brackets == "" and isinstance(item, Collection) and item.brackets == "":
            items += item.items  # `1 \pm 2, 5` are three values
            is_open = is_open or item.is_open
        else:
            items.append(item)
    return Collection(source=source, items=tuple(items), brackets=brackets, is_open=is_open)


def _read_value(text: str) -> Value:
    sides = [side.strip() for side in split_top(text, _EQUALS) if side.strip()] or [text]
    names = [side for side in sides[:-1] if is_name(side)]
    stated = [side for side in sides[:-1] if not is_name(side)]
    if stated and is_name(split_unit(sides[-1])[0]):  # `4 = x`
        names.append(sides[-1])
    else:
        stated.append(sides[-1])
    name = next((name for name in names if len(name) == 1), "")
    return Value(source=text, forms=tuple(map(_read_form, stated)), name=name)


def _read_form(text: str) -> Form:
    value, unit, factor = split_unit(text)
    return Form(text=value, unit=unit, factor=factor)


def is_name(text: str) -> bool:
    """Whether one side of an equation only says what the value is of: `x`, `f(2)`, `x_1`, `\text{Area}`, `AB + CD`."""
    bare = _SUBSCRIPTS.sub("", text)
    return not re.search(r"\d", bare) and not _CONSTANTS.search(bare) and bare.strip() not in ("i", "e")


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts between separators that stand in no brackets. Raises UnreadableError when brackets do not match."""
    depths = list(_depths(text))
    parts, start = [], 0
    for match in separator.finditer(text):
        if depths[match.start()] == 0 and match.start() >= start:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def closing_of(text: str) -> int:
    """Offset of the bracket that closes the first character."""
    depths = list(_depths(text))
    return next((place for place in range(1, len(text)) if depths[place] == 0 and text[place] in _CLOSING), -1)


def _depths(text: str) -> Iterator[int]:
    r"""The depth of brackets at each character, opening and closing ones as outside; `\begin...\end` is a bracket."""
    depth = 0
    for place, character in enumerate(text):
        if character in _CLOSING or text.startswith("\\end{", place):
            depth -= 1
        if depth < 0 or depth > MAX_DEPTH:
            raise UnreadableError(text)
        yield depth
        if character in _OPENING or text.startswith("\\begin{", place):
            depth += 1
    if depth:
        raise UnreadableError(text)


def exact_number(text: str) -> Fraction | None:
    r"""The exact value of a number in digits: `-1,234.50`, `1/2`, `1 1/4`, `2\frac14`, `1.5 \times 10^{3}`."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    match = _REPEATING.fullmatch(text)
    if match is not None:
        fixed, repeated = match[3] or "", match[4]
        value = int(match[2] + fixed + repeated) - int((match[2] + fixed) or "0")
        return _signed(match[1], Fraction(value, (10 ** len(repeated) - 1) * 10 ** len(fixed)))
    match = _MIXED.fullmatch(text)
    if match is not None:
        return _signed(match[1], _mixed(match[2], match[3], match[4]))
    match = _FRACTION.fullmatch(text)
    if match is not None:
        return _signed(match[1], _mixed(match[2] or "0", match[3] or match[4], match[5] or match[6]))
    match = _POWER_OF_TEN.fullmatch(text)
    if match is not None:
        return _signed(match[1], Fraction(10) ** int(match[2] or match[3]))
    match = _SCIENTIFIC.fullmatch(text)
    if match is not None:
        mantissa = parse_rational(match[1])
        return None if mantissa is None else mantissa * Fraction(10) ** int(match[2] or match[3] or 1)
    return None if re.search(r"[$%]", text) else parse_rational(text)


def based_number(text: str) -> str | None:
    """A number in a stated base, as digits and base: it equals only what states the same."""
    match = _BASED.fullmatch(text)
    if match is None or not re.search(r"\d", match[2]):
        return None
    return f"{match[1]}{match[2].upper().lstrip('0')}_{match[3] or match[4]}"


def words_of(text: str) -> str | None:
    r"""What words say, for comparison; None for mathematics, a single letter included. `\text{(A)}` says "a"."""
    bare = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    is_text = "\\text" in text or re.fullmatch(r"\([A-Z]\)", text) or any(map(is_word, re.findall("[A-Za-z]+", bare)))
    return letters_of(text) if is_text else None


def letters_of(text: str) -> str | None:
    """The words without articles and marks, in small letters; None where there is mathematics."""
    bare = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    words = re.findall(r"[a-z]+", bare.lower())
    if not words or re.search(r"[\d\\=+^_<>]", bare):
        return None
    return " ".join(word for word in words if len(words) == 1 or word not in ("the", "a", "an"))


def _mixed(whole: str, numerator: str, denominator: str) -> Fraction | None:
    digits = re.sub(r"\D", "", whole)
    if not int(denominator) or len(digits + numerator + denominator) > 256:
        return None
    return int(digits) + Fraction(int(numerator), int(denominator))


def _signed(sign: str, value: Fraction | None) -> Fraction | None:
    return None if value is None else -value if sign == "-" else value
