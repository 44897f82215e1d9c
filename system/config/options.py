"""The options of an algorithm, a loss or a scorer: a mapping in the configuration, checked against its dataclass.

Every field of such a dataclass is made by `system.fields.key`, as those of the configuration itself.
"""

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from system.config.reference import describe_type
from system.errors import ConfigError
from system.fields import check_bounds

T = TypeVar("T")


def make_options(kind: type[T], values: Mapping[str, object], *, prefix: str) -> T:
    """`kind` with `values`; names, types and bounds are checked. Raises ConfigError for the first mistake."""
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            fix = f"did you mean {prefix}.{near[0]}?" if near else "remove it"
            if value is None and ":" in str(name):
                fix = f"YAML wants a space after the colon: {str(name).replace(':', ': ', 1)}"
            expected = f"one of {', '.join(known)}" if known else "no options"
            raise ConfigError(f"{prefix}.{name}", given=value, expected=expected, fix=fix)
        if not _fits(value, annotation=hints[name]):
            raise ConfigError(
                f"{prefix}.{name}", given=value, expected=describe_type(hints[name]), fix=f"change {prefix}.{name}"
            )
    missing = [
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING and name not in values
    ]
    if missing:
        raise ConfigError(
            f"{prefix}.{missing[0]}",
            given=None,
            expected=describe_type(hints[missing[0]]),
            fix=f"set {prefix}.{missing[0]}",
        )
    options = kind(**{name: _converted(value, annotation=hints[name]) for name, value in values.items()})
    check_bounds(options, prefix=prefix)
    return options


def _fits(value: object, *, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(_fits(value, annotation=argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is dict:
        return isinstance(value, dict)
    if origin is tuple:
        is_list = isinstance(value, list | tuple)
        return is_list and all(_fits(part, annotation=arguments[0]) for part in value)  # type: ignore[attr-defined]
    if annotation is NoneType:
        return value is None
    if annotation in (int, float):
        return isinstance(value, int if annotation is int else int | float) and not isinstance(value, bool)
    return isinstance(value, annotation)


def _converted(value: Any, *, annotation: Any) -> Any:
    """Lists become tuples, and whole numbers floats where the field is one."""
    if isinstance(value, list):
        return tuple(value)
    is_float = annotation is float or float in get_args(annotation)
    return float(value) if is_float and isinstance(value, int) and not isinstance(value, bool) else value
