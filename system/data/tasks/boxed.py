r"""Final answers and steps of written solutions: the last `\boxed{}`, paragraphs. Used by the text tasks."""

import re

MIN_STEP_CHARACTERS = 40
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BLANK_LINES = re.compile(r"\n[ \t\r]*(?:\n[ \t\r]*)+")


def last_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` (or `\fbox`), braces balanced; None when there is none or it never closes."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    depth = 1
    position = start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2  # an escaped brace, \{ or \}, is no bracket
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start:position].strip() or None
        position += 1
    return None


def last_box_start(text: str) -> int:
    r"""Offset of the last `\boxed{` (or `\fbox`); the length of the text when there is none."""
    return max((box.start() for box in _BOX.finditer(text)), default=len(text))


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
