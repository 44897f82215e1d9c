r"""Comparison of two mathematical answers in LaTeX or plain text by math-verify. Runs in a sandbox child.

math-verify's own time limits use signals and are switched off: the sandbox's limit is the only one, it
also ends C code, and a limit that ends in "wrong" would be a silent zero.
"""

import logging

from math_verify import parse, verify

# The library warns once about the missing limit and logs every failed parse with a traceback.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def check_math(answer: str, reference: str) -> tuple[str, float, str]:
    r"""Verdict on an answer that was already extracted from its response (the inside of `\boxed{}`).

    Returns:
        ("ok", 1.0, "right"), ("ok", 0.0, "wrong"), ("ok", 0.0, "unparseable") for an answer that math-verify
        cannot read and that is not literally the reference, ("invalid", 0.0, "unparseable_reference"), or
        ("invalid", 0.0, "verifier_error") when the comparison raised: that is no statement about the answer.
    """
    expected = _parse(reference)
    if not expected:
        return "invalid", 0.0, "unparseable_reference"
    given = _parse(answer)
    if not given:
        return "ok", 0.0, "unparseable"
    try:
        is_equal = verify(expected, given, timeout_seconds=None, raise_on_error=True)
    except MemoryError:
        raise
    # sympy raises whatever it likes on nonsense (TypeError, RecursionError, NotImplementedError, its own
    # types); this is where untrusted model output is isolated.
    except Exception:  # noqa: BLE001
        # Parsed forms are compared first and literal text last; an error in the former hides the latter.
        if verify(expected, given, timeout_seconds=None, raise_on_error=False):
            return "ok", 1.0, "right"
        return "invalid", 0.0, "verifier_error"
    if is_equal:
        return "ok", 1.0, "right"
    is_only_text = all(isinstance(form, str) for form in given)
    return "ok", 0.0, "unparseable" if is_only_text else "wrong"


def _parse(text: str) -> list[object]:
    """What math-verify reads in `text`: a sympy object and its source, only the source, or nothing."""
    # With its full stop, "5." would be no number inside a box.
    expression = text.strip().rstrip(".")
    if not expression:
        return []
    forms: list[object] = parse("\\boxed{" + expression + "}", parsing_timeout=None)
    return forms


# Grammar tables and sympy's modules are loaded on first use, up to a second on a busy machine: done while the
# child starts, so that it does not count against the first answer's limit.
check_math(r"\frac{(x+1)^2}{2}", reference=r"\frac{x^2+2x+1}{2}")
