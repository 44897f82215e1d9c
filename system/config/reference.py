"""The schema as a flat list of dotted keys: what `credence config` prints and what error messages suggest.

Called by system/config/load.py and system/cli.py; free of torch, Ray and OmegaConf.
"""

import difflib
import functools
from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from system.config.schema import Config
from system.errors import ConfigError
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

    @property
    def section(self) -> str:
        return self.name.partition(".")[0]

    @property
    def last_part(self) -> str:
        return self.name.partition(".")[2]

    @property
    def is_mapping(self) -> bool:
        """Whether it holds the options of what another key names, each set by its own dotted name."""
        return get_origin(self.annotation) is dict

    @property
    def item_type(self) -> type | None:
        """The dataclass of its items when it is a list of mappings."""
        if get_origin(self.annotation) is not tuple:
            return None
        item: type = get_args(self.annotation)[0]
        return item if is_dataclass(item) else None


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
            is_required=field.default is MISSING and field.default_factory is MISSING,
            sentence=field.metadata["sentence"],
            bounds=field.metadata["bounds"],
        )


def _default_of(field: Field[Any]) -> object:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def describe_type(annotation: Any) -> str:
    """What a user has to write for a value of this type, e.g. "a whole number or null"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        named = [describe_type(argument) for argument in arguments if argument is not NoneType]
        return " or ".join([*named, "null"] if NoneType in arguments else named)
    if origin is Literal:
        return "one of " + ", ".join(arguments)
    if origin is dict:
        return "a mapping"
    if origin is tuple and arguments[1] is Ellipsis:
        item = arguments[0]
        inner = f"mappings with {', '.join(entry.name for entry in fields(item))}" if is_dataclass(item) else "values"
        return f"a list of {inner}"
    if origin is tuple:
        return f"a list of {len(arguments)} numbers"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[annotation]


def nearest_key(name: str) -> str | None:
    """The known key that an unknown one was probably meant to be, or None where nothing is near.

    In the section that was named a loose match is enough: a near spelling, or the beginning of a longer name. Elsewhere
    the last part must be the same, or nearly so.
    """
    section, _, last = name.rpartition(".")
    sections = difflib.get_close_matches(section, section_types(), n=1, cutoff=0.75)
    inside = {key.name: key.last_part for key in config_keys().values() if key.section in sections}
    everywhere = {key.name: key.last_part for key in config_keys().values()}
    longer = [key for key, part in inside.items() if len(last) > 1 and part.startswith(last)]
    return (
        _near(last, inside, cutoff=0.75)
        or (longer[0] if len(longer) == 1 else None)
        or _near(last, everywhere, cutoff=0.9)
    )


def _near(last: str, candidates: dict[str, str], *, cutoff: float) -> str | None:
    """The one candidate whose last part is the nearest to `last`; None where there is none or more than one."""
    close = difflib.get_close_matches(last, set(candidates.values()), n=1, cutoff=cutoff)
    keys = [key for key, part in candidates.items() if close and part == close[0]]
    return keys[0] if len(keys) == 1 else None


def unread_key(name: str, *, given: object, because: str) -> ConfigError:
    """The error for a key that is set although nothing reads it: it has to keep its default."""
    default = yaml_text(config_keys()[name].default)
    return ConfigError(name, given=given, expected=f"{default}, as {because}", fix=f"{name}={default}, or remove it")


def _all_sections() -> list[tuple[str, list[ConfigKey]]]:
    """Title and keys: the sections of the schema, then the options of each built-in algorithm, loss and scorer."""
    from system.config.parts import built_in_options  # below it: the parts are made of what is here

    own = [(section, [key for key in config_keys().values() if key.section == section]) for section in section_types()]
    return own + [(title, list(_keys_of(prefix, kind))) for title, prefix, kind in built_in_options()]


def reference_text() -> str:
    """Every key with type, bounds, default and one sentence, by section."""
    lines: list[str] = []
    for title, keys in _all_sections():
        lines += ["", f"{title}:"] if lines else [f"{title}:"]
        for key in keys:
            default = "required" if key.is_required else f"default {yaml_text(key.default)}"
            facts = "; ".join(filter(None, [describe_type(key.annotation), str(key.bounds), default]))
            lines += [f"  {key.name}  ({facts})", f"      {key.sentence}"]
    return "\n".join(lines)


def reference_markdown() -> str:
    """The page docs/configuration.md."""
    command = "credence config --markdown > docs/configuration.md"
    lines = ["# Configuration", "", f"Written by `{command}`; a test keeps it current."]
    for title, keys in _all_sections():
        lines += ["", f"## {title}", "", "| key | type | bounds | default | meaning |", "|---|---|---|---|---|"]
        for key in keys:
            default = "required" if key.is_required else f"`{yaml_text(key.default)}`"
            cells = (f"`{key.name}`", describe_type(key.annotation), str(key.bounds), default, key.sentence)
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def yaml_text(value: object) -> str:
    """A scalar or a short list as it would be written in a YAML file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if is_dataclass(value):
        parts = ((field.name, getattr(value, field.name)) for field in fields(value))
        return "{" + ", ".join(f"{name}: {yaml_text(part)}" for name, part in parts if part != {}) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(yaml_text(part) for part in value) + "]"
    if is_dataclass(value) and not isinstance(value, type):
        return "{" + ", ".join(f"{name}: {yaml_text(part)}" for name, part in asdict(value).items() if part != {}) + "}"
    return str(value)
