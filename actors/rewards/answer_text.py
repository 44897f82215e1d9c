r"""How an answer is written, undone: markup, spacing, thousands marks, units. Text in, text out.

`plain_text` gives one spelling to what means the same (`**73**`, `\$73`, `73`), and keeps words as `\text{...}`.
`split_unit` takes the unit off one value. Used by `answer_values.py` in a sandbox child.
"""

import re

_SYMBOLS = {
    "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}", "⅘": r"\frac{4}{5}", "⅙": r"\frac{1}{6}",
    "⅚": r"\frac{5}{6}", "⅐": r"\frac{1}{7}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}",
    "⅞": r"\frac{7}{8}", "⅑": r"\frac{1}{9}", "⅒": r"\frac{1}{10}", "π": r"\pi ", "∞": r"\infty ",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "∕": "/", "⁄": "/",
    "−": "-", "–": "-", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "±": r"\pm ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
    "°": r"^{\circ}", "…": r"\ldots ",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "∨": r"\lor ", "∧": r"\land ", "″": "''",
    "\u00a0": "~", "\u2009": r"\,", "\u202f": r"\,", "\u2007": r"\,", "\u2008": r"\,", "\u200a": r"\,", "\u3000": "~",
    "’": "'", "′": "'", "“": '"', "”": '"', "﹣": "-",
    "€": r"\euro ", "£": r"\pounds ",
}  # fmt: skip
_FULL_WIDTH = {chr(0xFF01 + offset): chr(0x21 + offset) for offset in range(94)}  # ５ is 5
_TRANSLATION = str.maketrans(_FULL_WIDTH | _SYMBOLS)
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
_LOWERED = "₀₁₂₃₄₅₆₇₈₉"
_RAISED_TO = str.maketrans(_RAISED, "0123456789+-")
_LOWERED_TO = str.maketrans(_LOWERED, "0123456789")

_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]|\\[a-z]+))")
_BOLD = re.compile(r"(?<![\w)}])(\*\*|__|\*|`)(?=\S)([^*`]+?)(?<=\S)\1(?![\w({])")
_WRAPPERS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$\$(.*)\$\$",
        r"\$(?!\s*\d[^$]*\$.)([^$]*)\$",
        r"\\\((.*)\\\)",
        r"\\\[(.*)\\\]",
        r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}",
        r"\{([^{}]*)\}",
        r"[\"'](.*)[\"']",
    )
)
_DOLLAR = re.compile(r"(?<!\\)\$")
# `1\,234`, `1{,}234`, `1,\!234`, `1 234`, `1'234`: one mark throughout, groups of three
_THOUSANDS = re.compile(
    r"(?<![\d.,^_])\d{1,3}(?:(,?\\[,!;: ]|,?~|\{,\\?!?\}|,\\!|\\thinspace\s*|'| )\d{3}(?!\d))(?:\1\d{3}(?!\d))*"
)
_DOTTED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{3}){2,}(?![\d.])")
_SPACES = re.compile(r"(?<!\\)\\[,;: >]|\\(?:quad|qquad|thinspace|enspace|hfill|hspace\{[^{}]*\})(?![a-zA-Z])|~")
_NOTHING = re.compile(
    r"(?<!\\)\\!|\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|nolimits|boldmath)(?![a-zA-Z])\.?"
    r"|\\phantom\{[^{}]*\}|\\(?:label|tag)\{[^{}]*\}"
)
_TEXT = re.compile(
    r"\\(text|textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|boldsymbol|bm"
    r"|emph|underline|operatorname\*?)\s*\{([^{}]*)\}(?:\{\})?"
)
_NESTED_FONT = re.compile(r"\\(?:textbf|mathbf|mathit|mathsf|boldsymbol|bm|underline|emph)(?=\s*\{)")
# `The answer is 4`, `\text{Answer: } 4`, `about 4`, `USD 4`
_ANNOUNCEMENT = re.compile(
    r"(?:\\text\{\s*)?(?:(?:the\s+)?(?:final\s+)?answer\s*(?:is|=)?\s*:?|about|approximately|USD|EUR)\s*\}?\s*(?=[-+\d\\(.])",
    re.IGNORECASE,
)
_SLANTED = {"mathbf", "mathit", "mathsf", "mathtt", "boldsymbol", "bm", "underline"}  # these hold mathematics
_FUNCTIONS = (
    "arcsin|arccos|arctan|arccot|arcsec|arccsc|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|log|ln|exp|max|min|gcd|lcm|det"
    "|lim|mod|deg|arg|sqrt|frac|pi|infinity|infty|inf|cbrt|abs"
)
_FUNCTION_NAME = re.compile(rf"(?:{_FUNCTIONS})")
# Words that say something about the number before them: with one of these it is no mere unit.
_MEANINGFUL = frozenset(
    re.findall(
        r"\w+",
        "or and not nor to than of less more fewer below minus plus times over squared cubed factorial half halves "
        "third thirds negative positive point but if unless except either neither both through until up down each "
        "respectively otherwise mod modulo base where when for all any no root power e remainder r",
    )
)
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_UNIT_NAMES = {
    "m": "m meter meters metre metres", "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres", "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
    "mg": "mg milligram milligrams", "g": "g gram grams gm", "kg": "kg kilogram kilograms kilo kilos",
    "lb": "lb lbs pound pounds", "oz": "oz ounce ounces", "ton": "ton tons", "ml": "ml milliliter milliliters",
    "l": "l liter liters litre litres", "gal": "gal gallon gallons", "ms": "ms millisecond milliseconds",
    "s": "s sec secs second seconds", "min": "min mins minute minutes", "h": "h hr hrs hour hours",
    "day": "day days", "week": "week weeks", "month": "month months", "year": "year years yr yrs",
    "mph": "mph", "kph": "kph kmh kmph", "cent": "cent cents", "dollar": "dollar dollars usd", "euro": "euro euros eur",
    "degree": "degree degrees deg", "radian": "radian radians rad", "percent": "percent percentage pct",
    "am": "am a.m", "pm": "pm p.m", "hz": "hz", "khz": "khz", "j": "j joule joules", "n": "n newton newtons",
    "w": "w watt watts", "kw": "kw", "v": "v volt volts", "k": "k kelvin", "pa": "pa", "kpa": "kpa",
    "mol": "mol mole moles",
}  # fmt: skip
_UNIT_OF = {spelling: unit for unit, spellings in _UNIT_NAMES.items() for spelling in spellings.split()}
_CURRENCY_SIGN = r"(?:\\(?:\$|pounds|euro)|\$)"
_CURRENCY = re.compile(rf"([+-]?)\s*{_CURRENCY_SIGN}\s*([\d.\\(+-].*)|(.*[\d}}])\s*{_CURRENCY_SIGN}", re.DOTALL)
_LAST_WORDS = re.compile(
    r"(?P<body>.*?[\d})\]!.a-zA-Z|'])(?P<gap>\s*)(?P<unit>"
    r"(?:\\text\{[^{}]*\}|(?<![A-Za-z\\])[A-Za-z][A-Za-z.]*)(?:\s*\^\s*(?:\{-?\d\}|-?\d))?"
    r"(?:\s*(?:/|\\cdot|\*|-|\s)\s*(?:\\text\{[^{}]*\}|(?<!\\)[A-Za-z]+)(?:\s*\^\s*(?:\{-?\d\}|-?\d))?)*)",
    re.DOTALL,
)
_MAX_UNIT_CHARACTERS = 100
_PERCENT = re.compile(r"(.*[^\s\\])\s*\\?%", re.DOTALL)
_DEGREES = re.compile(
    r"(?!.*(?:sin|cos|tan|cot|sec|csc))(.*\S)\s*\^\s*\{?\s*\\(?:circ|degree)\s*\}?\s*(?:\\text\{\s*[CF]\s*\})?",
    re.DOTALL,
)
_QUANTITY = re.compile(r"\d|\\(?!text)[a-z]")
_WORD = re.compile(r"[A-Za-z]+")


def plain_text(text: str) -> str:
    r"""One spelling: no markup, no TeX spacing, no thousands marks but commas; words only within `\text{...}`."""
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", text)
    text = re.sub(f"[{_RAISED}]+", lambda run: f"^{{{run[0].translate(_RAISED_TO)}}}", text)
    text = re.sub(f"[{_LOWERED}]+", lambda run: f"_{{{run[0].translate(_LOWERED_TO)}}}", text)
    text = text.translate(_TRANSLATION)
    text = _unwrap(text)
    if len(_DOLLAR.findall(text)) % 2 == 0:  # they enclose formulas; a single one is money
        text = _DOLLAR.sub(" ", text)
    text = _THOUSANDS.sub(lambda number: re.sub(r"\D", "", number[0]), text)
    text = _DOTTED_THOUSANDS.sub(lambda number: number[0].replace(".", ""), text)
    text = _NOTHING.sub("", _SPACES.sub(" ", text))
    text = re.sub(r"\\([dtc])frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\{,\}", ",", text)
    text = re.sub(r"\\(?:varnothing|oslash)(?![a-zA-Z])", r"\\emptyset", text)
    text = _NESTED_FONT.sub("", _TEXT.sub(_plain_words, text))
    text = _ANNOUNCEMENT.sub("", text.replace("**", "^").strip())
    return " ".join(_unwrap(text).split())


def _unwrap(text: str) -> str:
    """Without what encloses all of it, without bold marks and the final full stop."""
    previous = None
    while previous != text:
        previous = text
        text = re.sub(r"[\\\s]+$", "", _BOLD.sub(r"\2", text.strip()))
        if not re.search(r"(?:\.\.|dots)\s*\.$|\.\.$", text):
            text = re.sub(r"[\s.]+$", "", text) if re.search(r"[^.\s]", text) else ""
        for wrapper in _WRAPPERS:
            match = wrapper.fullmatch(text)
            if match is not None:
                text = match[1]
    return text


def _plain_words(match: re.Match[str]) -> str:
    command, content = match[1], " ".join(match[2].split())
    if content not in _UNIT_OF and _FUNCTION_NAME.fullmatch(content) and command.startswith(("operatorname", "mathrm")):
        return f"\\{content} "
    is_mathematics = command in _SLANTED or not re.search("[A-Za-z]", content)
    if is_mathematics or re.search(r"\d", content):
        return f" {content} "
    return rf" \text{{{content}}} "


def split_unit(text: str) -> tuple[str, str, int]:
    r"""What stands before a trailing unit, the unit ("" for none), and the factor of "million" and its like.

    A unit is a percent or degree sign, `\text{...}`, or words that are no product of variables. Words that change the
    number ("less", "or more") are left where they are, so that the value cannot be read as a number.
    """
    currency = _CURRENCY.fullmatch(text)
    if currency is not None:
        unit = "pound sterling" if r"\pounds" in text else "euro" if r"\euro" in text else "dollar"
        value, _, factor = split_unit((currency[1] or "") + (currency[2] or currency[3]))
        return value, unit, factor
    for pattern, unit in ((_PERCENT, "percent"), (_DEGREES, "degree")):
        match = pattern.fullmatch(text)
        if match is not None:
            return match[1], unit, 1
    head, tail = text[:-_MAX_UNIT_CHARACTERS], text[-_MAX_UNIT_CHARACTERS:]
    match = _LAST_WORDS.fullmatch(tail)
    if match is None or not _QUANTITY.search(head + match["body"]):
        return text, "", 1
    words = _unit_words(match["unit"])
    if not _is_unit(match["unit"], words=words, is_glued=not match["gap"]):
        return text, "", 1
    factor = 1
    while words and words[0] in _SCALES:
        factor *= _SCALES[words.pop(0)]
    return (head + match["body"]).strip(), _unit_key(match["unit"], words=words), factor


def _unit_words(unit: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Za-z]+(?:\.[a-z])?", unit.replace(r"\text", ""))]


def _is_unit(unit: str, *, words: list[str], is_glued: bool) -> bool:
    if not words or any(
        word in _MEANINGFUL or (word not in _UNIT_OF and _FUNCTION_NAME.fullmatch(word)) for word in words
    ):
        return False
    if r"\text" in unit:
        return re.search(r"\\text\{[^{}]*[()?=+<>:;,]", unit) is None
    is_compound = "/" in unit
    return all(is_word(word) or (word in _UNIT_OF and (is_compound or len(word) > 1)) for word in words) and (
        not is_glued or all(word in _UNIT_OF for word in words)
    )


def _unit_key(unit: str, *, words: list[str]) -> str:
    """Comparable where every word is a known unit, else "": two units of the same number may be two descriptions."""
    names = [word for word in words if word not in ("square", "sq", "cubic", "cu", "per")]
    if not names or any(word not in _UNIT_OF for word in names):
        return ""
    power = "^2" if {"square", "sq"} & set(words) else "^3" if {"cubic", "cu"} & set(words) else ""
    raised = re.search(r"\^\s*\{?(-?\d)", unit)
    return "/".join(_UNIT_OF[name] for name in names) + (power or (f"^{raised[1]}" if raised else ""))


def is_word(text: str) -> bool:
    """Three letters or more that are no product of variables, which would stand in alphabetical order (`xyz`)."""
    if text.lower() in ("no", "pm", "am"):
        return True
    return len(text) >= 3 and _WORD.fullmatch(text) is not None and list(text.lower()) != sorted(set(text.lower()))
