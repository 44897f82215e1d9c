"""What the processes of an engine wrote while they failed: vLLM's own error only says that it is "above".

Used by actors/rollout/vllm_engine.py. The processes inherit their owner's error output, which Ray leads into a file of
the worker.
"""

import os
import re
import stat
from pathlib import Path

_MAX_BYTES = 1 << 20
# "(EngineCore pid=7) ERROR 11-26 02:03:04 [core.py:9] ValueError: Head size 16 is not supported", or bare.
_ERROR_LINE = re.compile(
    r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?(?:[\w.]+\.)?(\w*(?:Error|Exception): .+)$", re.MULTILINE
)


class EngineLog:
    """The error output of this process, from now on; empty where it is a terminal or a pipe."""

    def __init__(self, descriptor: int = 2) -> None:
        self._path = Path(f"/proc/self/fd/{descriptor}")
        status = os.fstat(descriptor)
        self._is_file = stat.S_ISREG(status.st_mode)
        self._start = status.st_size

    def cause(self) -> str:
        """The first error that was written, and the file it stands in; empty when none can be read."""
        if not self._is_file:
            return ""
        with self._path.open("rb") as file:
            file.seek(self._start)
            text = file.read(_MAX_BYTES).decode(errors="replace")
        found = _ERROR_LINE.search(text)
        return f"{found[1].strip()} (in {os.readlink(self._path)})" if found else ""
