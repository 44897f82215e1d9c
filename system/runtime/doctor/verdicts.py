"""One line of the doctor's table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "FAIL", "skip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """`found` names the node where it is about one; what is `ok` or `skip` needs neither `expected` nor `fix`."""

    name: str
    status: Status
    found: str
    expected: str = ""
    fix: str = ""


def ok(name: str, found: str) -> Check:
    return Check(name=name, status="ok", found=found)


def skip(name: str, reason: str) -> Check:
    return Check(name=name, status="skip", found=reason)


def warn(name: str, found: str, *, expected: str, fix: str) -> Check:
    return Check(name=name, status="warn", found=found, expected=expected, fix=fix)


def fail(name: str, found: str, *, expected: str, fix: str) -> Check:
    return Check(name=name, status="FAIL", found=found, expected=expected, fix=fix)


def bad_or(checks: Sequence[Check], *, else_ok: Check) -> list[Check]:
    """What is wrong, or the one line that says that nothing is."""
    return list(checks) or [else_ok]


def gib(num_bytes: float) -> str:
    """E.g. 1.50 GiB."""
    return f"{num_bytes / 2**30:.2f} GiB"
