"""What the processes of an engine wrote while they failed: vLLM's own error only says that it is "above".

Used by actors/rollout/vllm_engine.py. The processes inherit their owner's output, which Ray leads into files of the
worker; vLLM writes the errors of its processes to the one that is not for errors.
"""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

_MAX_BYTES = 1 << 20
# "(EngineCore pid=7) ERROR 11-26 02:03:04 [core.py:9] ValueError: Head size 16 is not supported", or bare.
_ERROR_LINE = re.compile(
    r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?(?:[\w.]+\.)?(\w*(?:Error|Exception): .+)$", re.MULTILINE
)


class EngineLog:
    """Both outputs of this process, from now on; nothing of one that is a terminal or a pipe."""

    def __init__(self, descriptors: Sequence[int] = (1, 2)) -> None:
        statuses = {Path(f"/proc/self/fd/{descriptor}"): os.fstat(descriptor) for descriptor in descriptors}
        self._starts = {path: status.st_size for path, status in statuses.items() if stat.S_ISREG(status.st_mode)}

    def cause(self) -> str:
        """The first error that was written, and the file it stands in; empty when none can be read."""
        for path, start in self._starts.items():
            with path.open("rb") as file:
                file.seek(start)
                text = file.read(_MAX_BYTES).decode(errors="replace")
            found = _ERROR_LINE.search(text)
            if found:
                return f"{found[1].strip()} (in {os.readlink(path)})"
        return ""
