"""A run state with something in every field, and checkpoints of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from system.data.file_stamps import stamp_files
from system.data.prompts import PromptCursor
from system.records import Prompt
from system.reports.guards import HackingGuards
from system.runtime.checkpoint import CheckpointStore, RunState
from system.runtime.ledger import Ledger


def make_state(*, policy_version: int) -> RunState:
    ledger = Ledger()
    ledger.count("leased")
    ledger.count("leased")
    ledger.count_dropped("stale")
    prompt = Prompt(
        prompt_id="train/00001@4",
        token_ids=np.array([3, 1, 2], np.int32),
        text="1+1:",
        reference_answer="2",
        task="gsm8k_chains",
    )
    guards = HackingGuards()
    guards.observe({"train/accuracy": 0.5}, update=1)
    return RunState(
        policy_version=policy_version,
        cursor=PromptCursor(num_visits=5, num_skipped=1),
        ledger=ledger.state(in_flight=[1], last_group_id=1),
        outstanding={1: prompt},
        completion_tokens=77,
        seconds=1.5,
        canary_max_abs_diff=2e-6,
        guards=guards.state(),
    )


def save(store: CheckpointStore, policy_version: int, *, accuracy: float | None = None) -> Path:
    """A checkpoint with one file of a learner rank and one that this process wrote."""
    directory = store.partial_directory(policy_version)
    part = directory / "learner" / "part.pt"
    part.parent.mkdir()
    part.write_bytes(bytes(range(100)))
    (directory / "scorer").mkdir()
    (directory / "scorer" / "average").write_bytes(b"average")
    evaluation = None if accuracy is None else {"eval/accuracy_greedy": accuracy}
    state = replace(make_state(policy_version=policy_version), evaluation=evaluation)
    return store.commit(directory, state, written=stamp_files([part]))
