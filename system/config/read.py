"""Reads what a user wrote, YAML files and `key=value` texts, into one entry for each key with the place it stands in.

Called by system/config/load.py. A file may lie over others: `base: ../demo.yaml` (or a list) names them, relative to
the file itself. They are read before it, each file once however often it is named.
"""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from system.config.reference import config_keys, nearest_key, section_types
from system.errors import ConfigError

BASE = "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One value that somebody wrote down, and where."""

    key: str
    value: object
    origin: str  # "in FILE" or "on the command line"


def read_files(paths: Sequence[str | Path]) -> Iterator[Entry]:
    """The entries of files left to right, each after those of its bases."""
    seen: set[Path] = set()
    for path in paths:
        yield from _read_with_bases(Path(path), seen=seen)


def _read_with_bases(path: Path, *, seen: set[Path]) -> Iterator[Entry]:
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    content = _read_file(path)
    bases = content.pop(BASE, [])
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{BASE} in {path}", given=bases, expected="a file or a list of files", fix=f"e.g. {BASE}: ../demo.yaml"
        )
    for name in names:
        yield from _read_with_bases(Path(os.path.normpath(path.parent / name)), seen=seen)
    yield from entries_of(content, origin=f"in {path}")


def _read_file(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        fix = "check the path; an override is written key=value" if "=" not in str(path) else "write key=value"
        raise ConfigError(str(path), given=reason, expected="a readable YAML file", fix=fix) from error
    try:
        container = OmegaConf.load(io.StringIO(text))
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(str(path), text=text, error=error) from error
    except yaml.YAMLError as error:
        raise ConfigError(str(path), given=one_line(error), expected="YAML text", fix="save it as UTF-8") from error
    except OmegaConfBaseException as error:
        raise interpolation_error(str(getattr(error, "full_key", "") or path), error, origin=f"in {path}") from error
    except OSError:  # what OmegaConf raises for a file that holds a single number
        container = None
    if not isinstance(container, DictConfig):
        raise ConfigError(
            str(path), given=text.strip()[:60], expected="sections with keys at the top level", fix="write 'run:' etc."
        )
    if not container:
        raise ConfigError(str(path), given="an empty file", expected="sections with keys", fix="remove it or fill it")
    content = OmegaConf.to_container(container, resolve=False)
    assert isinstance(content, dict)
    return {str(section): keys for section, keys in content.items()}


def read_override(text: str) -> list[Entry]:
    """The entry of one `key=value` text."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigError(
            text, given=text, expected="key=value", fix="e.g. run.seed=1; 'credence config' lists the keys"
        )
    if not value:
        raise ConfigError(key, given=text, expected="a value after '='", fix=f"write {key}=null to switch it off")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
    except yaml.MarkedYAMLError as error:
        expected = f"a YAML value ({one_line(error.problem)})"
        raise ConfigError(key, given=value, expected=expected, fix="quote the value") from error
    except OmegaConfBaseException as error:
        raise interpolation_error(key, error, origin="on the command line") from error
    assert isinstance(parsed, dict)
    section = (
        {key: parsed["value"]} if "." not in key else {key.split(".")[0]: {key.partition(".")[2]: parsed["value"]}}
    )
    return list(entries_of(section, origin="on the command line"))


def entries_of(values: object, *, origin: str) -> Iterator[Entry]:
    """Flattens section -> key -> value; refuses unknown names and scalars in place of sections."""
    assert isinstance(values, Mapping)
    sections, keys = section_types(), config_keys()
    for section, content in values.items():
        if section not in sections:
            if isinstance(content, Mapping) and content:
                key, value = next(iter(content.items()))
                raise _unknown_key(f"{section}.{key}", value=value, origin=origin)
            raise _unknown_key(str(section), value=content, origin=origin)
        if not isinstance(content, Mapping):
            raise ConfigError(
                str(section),
                given=content,
                expected=f"a section with keys such as {next(key for key in keys if key.startswith(section + '.'))}",
                fix=f"set the section's keys one by one {origin}, or leave the section out",
            )
        # a name before its options: an algorithm of another name begins with no options
        for key, value in sorted(content.items(), key=lambda item: item[0] != "name"):
            name, _, option = str(key).partition(".")
            known = keys.get(f"{section}.{name}")
            if known is None or (option and not known.is_mapping):
                raise _unknown_key(f"{section}.{key}", value=value, origin=origin)
            if known.is_mapping and not option and isinstance(value, Mapping):
                for each, given in value.items():
                    yield Entry(key=f"{section}.{name}.{each}", value=given, origin=origin)
            else:
                yield Entry(key=f"{section}.{key}", value=value, origin=origin)


def _unknown_key(key: str, *, value: object, origin: str) -> ConfigError:
    near = nearest_key(key)
    fix = (
        f"did you mean {near}? Change it {origin}" if near else f"remove it {origin}; 'credence config' lists all keys"
    )
    return ConfigError(key, given=value, expected="a key that exists", fix=fix)


def interpolation_error(key: str, error: Exception, *, origin: str) -> ConfigError:
    return ConfigError(
        key,
        given=one_line(error),
        expected="an interpolation ${section.key} that resolves to a value of this key's type",
        fix=f"change it {origin}",
    )


def _syntax_error(path: str, *, text: str, error: yaml.MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark
    number = 1 if mark is None else min(mark.line, max(0, len(text.splitlines()) - 1)) + 1
    line = text.splitlines()[number - 1] if text.splitlines() else ""
    return ConfigError(
        f"{path}:{number}",
        given=line.strip(),
        expected=f"valid YAML ({one_line(error.problem)})",
        fix="fix this line",
    )


def one_line(error: object) -> str:
    return " ".join(str(error).split("\n    full_key")[0].split())
