"""A user's own class, named in the configuration by its import path `package.module:Name`.

A user's module is looked for in the working directory of the command, or of the Ray job, as well. Worker processes
find it there too: they inherit PYTHONPATH from the process that reads the configuration.
"""

import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from system.errors import ConfigError


def is_import_path(name: str) -> bool:
    """Whether a name is `package.module:Name` and not that of a built-in."""
    return ":" in name


def label_of(name: str) -> str:
    """A built-in's name as it is; of an import path the class in lower case with underscores, for metric names."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(":")[2])
    return re.sub(r"[^a-z0-9_]", "_", words.lower())


def import_class(path: str, *, key: str, methods: Sequence[str]) -> Any:
    """The class that `package.module:Name` names, which has to have `methods`.

    Raises ConfigError in one line when it cannot be imported or lacks one of them.
    """
    _search_working_directory()
    module_name, _, name = path.partition(":")
    expected = "an import path package.module:Name"
    try:
        found = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # a user's module may raise anything while it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        fix = f"the module has to be importable from {os.getcwd()} or from PYTHONPATH"
        raise ConfigError(key, given=path, expected=f"{expected} ({reason})", fix=fix) from error
    if not isinstance(found, type):
        raise ConfigError(key, given=path, expected=f"{expected}, a class", fix="name the class")
    missing = [method for method in methods if not any(method in vars(base) for base in found.__mro__)]
    if missing:
        wanted = ", ".join(methods)
        raise ConfigError(
            key, given=path, expected=f"a class with the methods {wanted}", fix=f"define {', '.join(missing)} in {name}"
        )
    return found


def _search_working_directory() -> None:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*inherited, folder]))
