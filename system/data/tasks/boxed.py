r"""Final answers and steps of written solutions: the last `\boxed{}`, paragraphs. Used by the text tasks."""

import re

MIN_STEP_CHARACTERS = 40
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(\{)?")
# `\boxed 2`: a number, or any formula where the formula's end follows
_WITHOUT_BRACES = re.compile(
    r"[-+]?(?:\d|\\d?frac|\\sqrt|\\pi)[^\s$]*?(?=[.,;:]?(?:\s|\$|\\\)|\\\]|$))|[^\s${}]+(?=\$)"
)
# TeX's comments. Within a line only behind a formula's end, so that "50 % of them" is none.
_COMMENT = re.compile(r"^[ \t]*%.*$|(?<=[}$\\])[ \t]+%.*$", re.MULTILINE)
_NOTHING_INSIDE = re.compile(
    r"(?:\s|~|\\[,;:! ]|\\q?quad|\\(?:text|mathrm|mbox)\s*\{\s*\}|\$|\{\s*\}|\\ldots|\\dots|\.{3}|…|\?)*"
)
_BLANK_LINES = re.compile(r"\n[ \t\r]*(?:\n[ \t\r]*)+")


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` (or `\fbox`) that holds something.

    None when there is none, or it never closes.
    Braces are balanced. A box without braces (`\boxed 2`) counts where it holds a number. One in a TeX comment does
    not count.
    """
    text = _without_comments(text)
    for box in reversed(list(_BOX.finditer(text))):
        content = _content(text, box)
        if content is None:
            return None
        if _NOTHING_INSIDE.fullmatch(content) is None:
            return content.strip()
    return None


def has_box(text: str) -> bool:
    r"""Whether there is a `\boxed` (or `\fbox`), be it empty."""
    return _BOX.search(_without_comments(text)) is not None


def has_box_without_braces(text: str) -> bool:
    r"""Whether the last box that holds something is written `\boxed 2`."""
    text = _without_comments(text)
    boxes = [box for box in _BOX.finditer(text) if _content(text, box)]
    return bool(boxes) and boxes[-1][1] is None


def last_box_start(text: str) -> int:
    r"""Offset of the last `\boxed{` (or `\fbox`); the length of the text when there is none."""
    return max((box.start() for box in _BOX.finditer(_without_comments(text))), default=len(text))


def _without_comments(text: str) -> str:
    """Blanks in their place: offsets stay."""
    return _COMMENT.sub(lambda comment: " " * len(comment[0]), text)


def _content(text: str, box: re.Match[str]) -> str | None:
    """What a box holds, "" for nothing; None when it never closes."""
    if box[1] is None:
        token = _WITHOUT_BRACES.match(text, box.end())
        return token[0] if token is not None else ""
    depth = 1
    position = box.end()
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2  # an escaped brace, \{ or \}, is no bracket
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[box.end() : position]
        position += 1
    return None


def cut_paragraphs(response: str) -> list[int]:
    """End offsets (characters) of the paragraphs; one shorter than MIN_STEP_CHARACTERS is joined with the next.

    Blank lines belong to the paragraph before them; the last end is the length of the response.
    """
    ends: list[int] = []
    start = 0
    for blank in _BLANK_LINES.finditer(response):
        if blank.start() - start >= MIN_STEP_CHARACTERS and blank.end() < len(response):
            ends.append(blank.end())
            start = blank.end()
    return [*ends, len(response)] if response else []
