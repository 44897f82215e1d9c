"""The schema as a flat list of dotted keys: what `credence config` prints and what error messages suggest.

Called by system/config/load.py and system/cli.py; free of torch, Ray and OmegaConf.
"""

import difflib
import functools
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from system.config.schema import Config
from system.fields import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKey:
    """One key of the schema. `default` is meaningless when `is_required`."""

    name: str  # dotted: "rollout.num_workers"
    annotation: Any
    default: object
    is_required: bool
    sentence: str
    bounds: Bounds


@functools.cache
def section_types() -> dict[str, type]:
    """The dataclass of every section, in the schema's order."""
    hints = get_type_hints(Config)
    return {field.name: hints[field.name] for field in fields(Config)}


@functools.cache
def config_keys() -> dict[str, ConfigKey]:
    """Every key by dotted name, in the schema's order."""
    return {key.name: key for section, kind in section_types().items() for key in _keys_of(section, kind)}


def _keys_of(section: str, kind: type) -> Iterator[ConfigKey]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        yield ConfigKey(
            name=f"{section}.{field.name}",
            annotation=hints[field.name],
            default=_default_of(field),
            is_required=field.default is MISSING,
            sentence=field.metadata["sentence"],
            bounds=field.metadata["bounds"],
        )


def _default_of(field: Field[Any]) -> object:
    return None if field.default is MISSING else field.default


def describe_type(annotation: Any) -> str:
    """What a user has to write for a value of this type, e.g. "a whole number or null"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        named = [describe_type(argument) for argument in arguments if argument is not NoneType]
        return " or ".join([*named, "null"] if NoneType in arguments else named)
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if origin is tuple:
        return f"a list of {len(arguments)} numbers"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[annotation]


def nearest_key(name: str) -> str | None:
    """The known key that an unknown one was probably meant to be: same last part elsewhere, or a near spelling."""
    known = list(config_keys())
    elsewhere = [key for key in known if key.split(".")[1] == name.split(".")[-1]]
    if len(elsewhere) == 1:
        return elsewhere[0]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return close[0]
    short = {key.split(".")[1]: key for key in known}
    close = difflib.get_close_matches(name.split(".")[-1], short, n=1, cutoff=0.8)
    return short[close[0]] if close else None


def reference_text() -> str:
    """Every key with type, bounds, default and one sentence, by section."""
    lines: list[str] = []
    section = ""
    for key in config_keys().values():
        if key.name.split(".")[0] != section:
            section = key.name.split(".")[0]
            lines += ["", f"{section}:"] if lines else [f"{section}:"]
        default = "required" if key.is_required else f"default {yaml_text(key.default)}"
        facts = "; ".join(filter(None, [describe_type(key.annotation), str(key.bounds), default]))
        lines += [f"  {key.name}  ({facts})", f"      {key.sentence}"]
    return "\n".join(lines)


def yaml_text(value: object) -> str:
    """A scalar or a short list as it would be written in a YAML file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(yaml_text(part) for part in value) + "]"
    return str(value)
