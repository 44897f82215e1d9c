"""How a run ended that could not end itself well, as status.json says it. Written by train.py, read by retries.py."""

from __future__ import annotations

import json
from pathlib import Path

from system.reports.recorder import write_json_atomically

CLUSTER_LOST_PHASE = "cluster_lost"  # another attempt may go well


def note_cluster_loss(run_folder: Path) -> None:
    """In status.json, where there is one."""
    path = run_folder / "status.json"
    if path.exists():
        write_json_atomically(path, json.loads(path.read_text()) | {"phase": CLUSTER_LOST_PHASE})
