"""Loads configuration: YAML files left to right, then `key=value`, into the frozen dataclasses of config_schema.py.

Called by system/cli.py and by whatever reads a run folder. Every mistake ends in one ConfigError line that names the
key and the file or override it came from. Imports neither torch nor Ray, so that it fails in well under two seconds.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, ValidationError
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from system.config.checks import check_config
from system.config.reference import config_keys, describe_type, nearest_key, section_types
from system.config.schema import Config
from system.errors import ConfigError

# Keys that a resumed run may change: how long, how fast and how well watched it runs, not what is learned from what.
# A new run.num_updates stretches the learning rate schedule over the new length.
RESUMABLE_KEYS = (
    "run.num_updates",
    "run.max_seconds",
    "rollout.num_workers",
    "rollout.cpus_per_worker",
    "rollout.start_timeout_seconds",
    "rollout.group_timeout_seconds",
    "rollout.max_restarts",
    "reward.num_workers",
    "reward.processes_per_worker",
    "reward.cpus_per_worker",
    "reward.group_timeout_seconds",
    "scorer.num_workers",
    "scorer.tokens_per_pass",
    "scorer.threads_per_worker",
    "scorer.cpus_per_worker",
    "scorer.start_timeout_seconds",
    "scorer.group_timeout_seconds",
    "scorer.max_restarts",
    "guards.",
    "learner.threads_per_rank",
    "learner.cpus_per_rank",
    "learner.start_timeout_seconds",
    "learner.step_timeout_seconds",
    "weight_sync.bucket_mib",
    "weight_sync.timeout_seconds",
    "checkpoint.",
    "evaluation.",
    "tracker.",
    "cluster.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One value that somebody wrote down, and where."""

    key: str
    value: object
    origin: str  # "in FILE" or "on the command line"


class _Nothing:
    """Stands for a value that was not given; reads as `given nothing`."""

    def __repr__(self) -> str:
        return "nothing"


def split_inputs(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and `key=value` overrides of a command line; what has a '=' is an override unless such a file exists."""
    paths = [text for text in inputs if "=" not in text or Path(text).is_file()]
    return paths, [text for text in inputs if text not in paths]


def load_config(paths: Sequence[str | Path], overrides: Sequence[str] = (), *, check_devices: bool = True) -> Config:
    """The validated configuration of files merged left to right, then `key=value` overrides.

    `check_devices=False` skips what depends on this machine (processors, GPUs, model folders, keys), for a
    configuration that will run elsewhere. Raises ConfigError.
    """
    entries = [entry for path in paths for entry in _read_file(Path(path))]
    entries += [entry for text in overrides for entry in _read_override(text)]
    config = _build(entries)
    check_config(config, check_devices=check_devices)
    return config


def load_resumed_config(run_dir: str | Path, paths: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> Config:
    """The configuration of an existing run with changes. Raises ConfigError for a key that a resume may not change."""
    saved_path = Path(run_dir) / "config.yaml"
    if not saved_path.is_file():
        raise ConfigError(
            "--resume",
            given=str(run_dir),
            expected="a run folder with config.yaml and checkpoints",
            fix="give the folder that the first run printed, e.g. runs/NAME",
        )
    saved = load_config([saved_path], check_devices=False)
    resumed = load_config([saved_path, *paths], overrides)
    before, after = flatten(saved), flatten(resumed)
    for key, value in after.items():
        if value != before[key] and not any(key == safe or _is_in(key, safe) for safe in RESUMABLE_KEYS):
            raise ConfigError(
                key,
                given=value,
                expected=f"{before[key]!r}, as in {saved_path}, because a resumed run continues the same training",
                fix="leave it out, or start a new run",
            )
    return resumed


def _is_in(key: str, section: str) -> bool:
    return section.endswith(".") and key.startswith(section)


def config_from_dict(values: Mapping[str, object]) -> Config:
    """The configuration that `to_dict` wrote (of a checkpoint); this machine's devices are not checked."""
    config = _build(list(_entries_of(values, origin="in the saved configuration")))
    check_config(config, check_devices=False)
    return config


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Section -> key -> plain value, for JSON and checkpoints."""
    return asdict(config)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> value, in the schema's order."""
    return {f"{section}.{key}": value for section, keys in asdict(config).items() for key, value in keys.items()}


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML that load_config reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_file(path: Path) -> list[_Entry]:
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
        raise ConfigError(str(path), given=_one_line(error), expected="YAML text", fix="save it as UTF-8") from error
    except OmegaConfBaseException as error:
        raise _interpolation_error(str(getattr(error, "full_key", "") or path), error, origin=f"in {path}") from error
    except OSError:  # what OmegaConf raises for a file that holds a single number
        container = None
    if not isinstance(container, DictConfig):
        raise ConfigError(
            str(path), given=text.strip()[:60], expected="sections with keys at the top level", fix="write 'run:' etc."
        )
    if not container:
        raise ConfigError(str(path), given="an empty file", expected="sections with keys", fix="remove it or fill it")
    return list(_entries_of(OmegaConf.to_container(container, resolve=False), origin=f"in {path}"))


def _read_override(text: str) -> list[_Entry]:
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
        expected = f"a YAML value ({_one_line(error.problem)})"
        raise ConfigError(key, given=value, expected=expected, fix="quote the value") from error
    except OmegaConfBaseException as error:
        raise _interpolation_error(key, error, origin="on the command line") from error
    assert isinstance(parsed, dict)
    section = (
        {key: parsed["value"]} if "." not in key else {key.split(".")[0]: {key.partition(".")[2]: parsed["value"]}}
    )
    return list(_entries_of(section, origin="on the command line"))


def _entries_of(values: object, *, origin: str) -> Iterator[_Entry]:
    """Flattens section -> key -> value; refuses unknown names and scalars in place of sections."""
    assert isinstance(values, Mapping)
    sections, keys = section_types(), config_keys()
    for section, content in values.items():
        if section not in sections:
            raise _unknown_key(str(section), value=content, origin=origin)
        if not isinstance(content, Mapping):
            raise ConfigError(
                str(section),
                given=content,
                expected=f"a section with keys such as {next(key for key in keys if key.startswith(section + '.'))}",
                fix=f"set the section's keys one by one {origin}, or leave the section out",
            )
        for key, value in content.items():
            if f"{section}.{key}" not in keys:
                raise _unknown_key(f"{section}.{key}", value=value, origin=origin)
            yield _Entry(key=f"{section}.{key}", value=value, origin=origin)


def _build(entries: Sequence[_Entry]) -> Config:
    """Merges the entries in order, each checked on its own so that an error can name key and origin."""
    tree = OmegaConf.structured(Config)
    OmegaConf.set_readonly(tree, False)
    for section, kind in section_types().items():
        tree[section] = OmegaConf.structured(kind)
        OmegaConf.set_readonly(tree[section], False)
    origins: dict[str, str] = {}
    for entry in entries:
        _merge_entry(tree, entry)
        origins[entry.key] = entry.origin
    for key, origin in origins.items():
        _resolve_entry(tree, key, origin=origin)
    _refuse_missing(tree)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    return config


def _merge_entry(tree: DictConfig, entry: _Entry) -> None:
    annotation = config_keys()[entry.key].annotation
    # OmegaConf would turn `name: no` into the text "False" and `enforce_eager: 2` into true.
    is_bool = isinstance(entry.value, bool)
    is_wrong = not is_bool and isinstance(entry.value, int | float) if annotation is bool else is_bool
    try:
        if is_wrong or isinstance(entry.value, Mapping):
            raise ValidationError
        OmegaConf.update(tree, entry.key, entry.value)
    except (ValidationError, TypeError) as error:
        raise _wrong_value(entry.key, entry.value, origin=entry.origin) from error


def _resolve_entry(tree: DictConfig, key: str, *, origin: str) -> None:
    try:
        value = OmegaConf.select(tree, key)
    except (InterpolationResolutionError, ValidationError) as error:
        raise _interpolation_error(key, error, origin=origin) from error
    numbers = value if isinstance(value, tuple | list) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise _wrong_value(key, value, origin=origin)


def _refuse_missing(tree: DictConfig) -> None:
    missing = OmegaConf.missing_keys(tree)
    if missing:
        names = [key for key in config_keys() if key in missing]
        raise ConfigError(
            ", ".join(names),
            given=_Nothing(),
            expected="a value (there is no default)",
            fix=f"set it in a file, or add {names[0]}=... to the command",
        )


def _wrong_value(key: str, value: object, *, origin: str) -> ConfigError:
    expected = describe_type(config_keys()[key].annotation)
    if isinstance(value, float) and not math.isfinite(value):
        expected = f"{expected}, finite"
    return ConfigError(key, given=value, expected=expected, fix=f"change it {origin}")


def _unknown_key(key: str, *, value: object, origin: str) -> ConfigError:
    near = nearest_key(key)
    fix = (
        f"did you mean {near}? Change it {origin}" if near else f"remove it {origin}; 'credence config' lists all keys"
    )
    return ConfigError(key, given=value, expected="a key that exists", fix=fix)


def _interpolation_error(key: str, error: Exception, *, origin: str) -> ConfigError:
    return ConfigError(
        key,
        given=_one_line(error),
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
        expected=f"valid YAML ({_one_line(error.problem)})",
        fix="fix this line",
    )


def _one_line(error: object) -> str:
    return " ".join(str(error).split("\n    full_key")[0].split())
