"""Loads configuration: YAML files left to right, then `key=value`, into the frozen dataclasses of schema.py.

Called by system/cli.py and by whatever reads a run folder. Every mistake ends in one ConfigError line that names the
key and the file or override it came from. Imports neither torch nor Ray, so that it fails in well under two seconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from omegaconf import DictConfig, OmegaConf, ValidationError
from omegaconf.errors import InterpolationResolutionError

from system.config.checks import check_config
from system.config.options import make_options
from system.config.read import Entry, entries_of, interpolation_error, read_files, read_override
from system.config.reference import config_keys, describe_type, section_types
from system.config.schema import Config
from system.errors import ConfigError

# Keys that a resumed run may change: how long, how fast and how well watched it runs, not what is learned from what.
# A new run.num_updates stretches the learning rate schedule over the new length.
RESUMABLE_KEYS = (
    "run.num_updates",
    "run.max_seconds",
    "run.flight_recorder_steps",
    "rollout.num_workers",
    "rollout.cpus_per_worker",
    "rollout.start_timeout_seconds",
    "rollout.group_timeout_seconds",
    "rollout.max_restarts",
    "reward.num_workers",
    "reward.processes_per_worker",
    "reward.cpus_per_worker",
    "reward.group_timeout_seconds",
    "reward.max_restarts",
    "scorer.num_workers",
    "scorer.tokens_per_pass",
    "scorer.threads_per_worker",
    "scorer.cpus_per_worker",
    "scorer.start_timeout_seconds",
    "scorer.group_timeout_seconds",
    "scorer.max_restarts",
    "guards.",
    "learner.num_ranks",
    "learner.zero_stage",
    "learner.offload_optimizer",
    "learner.threads_per_rank",
    "learner.cpus_per_rank",
    "learner.start_timeout_seconds",
    "learner.step_timeout_seconds",
    "learner.max_skipped_steps",
    "weight_sync.bucket_mib",
    "weight_sync.timeout_seconds",
    "controller.max_dropped_in_a_row",
    "watchdog.",
    "checkpoint.",
    "evaluation.",
    "tracker.",
    "cluster.",
)


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
    written = [entry for text in overrides for entry in read_override(text)]
    # names first, as in a file: an algorithm of another name begins with no options
    entries = [*read_files(paths), *sorted(written, key=lambda entry: not entry.key.endswith(".name"))]
    config = _build(entries)
    try:
        check_config(config, check_devices=check_devices)
    except ConfigError as error:
        raise _with_origin(error, entries) from error
    return config


def _with_origin(error: ConfigError, entries: Sequence[Entry]) -> ConfigError:
    """The error of a check, with the place of what the user wrote last for its keys: a file, or the command line."""
    origins = {entry.key: entry.origin for entry in entries}
    places = list(dict.fromkeys(origins[key] for key in error.key.split(", ") if key in origins))
    return error.with_fix(f"{error.fix} (set {' and '.join(places)})") if places else error


def split_resume(text: str) -> tuple[str, int | None]:
    """Folder and policy version of `RUN_DIR` or `RUN_DIR@VERSION`; None: the newest checkpoint."""
    folder, at, version = text.rpartition("@")
    if not at or not version.isdecimal() or Path(text).is_dir():
        return text, None
    return folder, int(version)


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
    config = _build(list(entries_of(values, origin="in the saved configuration")))
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


def _build(entries: Sequence[Entry]) -> Config:
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


def _merge_entry(tree: DictConfig, entry: Entry) -> None:
    section, name = entry.key.split(".")[:2]
    key = config_keys()[f"{section}.{name}"]
    if name == "name" and f"{section}.options" in config_keys() and entry.value != tree[section].name:
        OmegaConf.update(tree, f"{section}.options", {}, merge=False)
    # OmegaConf would turn `name: no` into the text "False" and `enforce_eager: 2` into true.
    is_bool = isinstance(entry.value, bool)
    is_wrong = not is_bool and isinstance(entry.value, int | float) if key.annotation is bool else is_bool
    try:
        if (is_wrong and not key.is_mapping) or isinstance(entry.value, Mapping):
            raise ValidationError
        item = key.item_type
        value = entry.value if item is None else _items(entry.value, kind=item, prefix=entry.key)
        OmegaConf.update(tree, entry.key, value)
    except (ValidationError, TypeError) as error:
        raise _wrong_value(entry.key, entry.value, origin=entry.origin) from error


def _items(values: object, *, kind: type, prefix: str) -> list[DictConfig]:
    """The members of a list of mappings, such as reward.terms. Raises ConfigError, ValidationError for no list."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, Mapping) for value in values):
        raise ValidationError
    return [
        OmegaConf.structured(make_options(kind, value, prefix=f"{prefix}[{number}]"))
        for number, value in enumerate(values)
    ]


def _resolve_entry(tree: DictConfig, key: str, *, origin: str) -> None:
    try:
        value = OmegaConf.select(tree, key)
        if OmegaConf.is_config(value):
            OmegaConf.to_container(value, resolve=True)
    except (InterpolationResolutionError, ValidationError) as error:
        raise interpolation_error(key, error, origin=origin) from error
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
    annotation = config_keys()[".".join(key.split(".")[:2])].annotation
    if get_origin(annotation) is Literal and isinstance(value, str):
        error = ConfigError.unknown(key, given=value, known=get_args(annotation))
        return error.with_fix(f"{error.fix} Change it {origin}")
    expected = describe_type(annotation)
    if isinstance(value, float) and not math.isfinite(value):
        expected = f"{expected}, finite"
    return ConfigError(key, given=value, expected=expected, fix=f"change it {origin}")
