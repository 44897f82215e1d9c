"""A temporary folder whose name is short enough for the sockets of Ray and of the engines. Called by placement.

The kernel keeps 107 bytes for the path of a socket, and Ray's session folder takes 68 of them.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from system.errors import ConfigError

MAX_BYTES = 107 - len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")


def use_short_temporary_folder(candidates: Sequence[str] = ("/tmp", "/var/tmp", "/dev/shm")) -> str | None:
    """Sets TMPDIR for this process and its children where the present one is too long; returns the new one, or None.

    Raises ConfigError when none of the candidates can be written to.
    """
    present = tempfile.gettempdir()
    if len(os.fsencode(present)) <= MAX_BYTES:
        return None
    for candidate in candidates:
        if Path(candidate).is_dir() and os.access(candidate, os.W_OK | os.X_OK):
            os.environ["TMPDIR"] = tempfile.tempdir = candidate
            return candidate
    raise ConfigError(
        "TMPDIR",
        given=present,
        expected=f"a writable folder of at most {MAX_BYTES} bytes, as sockets are made in it",
        fix="export TMPDIR=/some/short/folder",
    )
