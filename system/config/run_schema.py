"""Sections of the configuration around a run: what it saves, evaluates, reports and watches, and where it runs.

Part of schema.py, whose conventions hold.
"""

from dataclasses import dataclass
from typing import Literal

from system.fields import key


@dataclass(frozen=True, kw_only=True)
class GuardsConfig:
    action: Literal["warn", "stop", "off"] = key(
        "When signs of reward hacking appear: alert and go on, or alert, evaluate, save a checkpoint and end the run.",
        "warn",
    )


@dataclass(frozen=True, kw_only=True)
class WatchdogConfig:
    stall_seconds: float | None = key(
        "A stage of the run that has work and makes no progress for so long, while nothing that it waits for has a "
        "deadline to come, is named and its stacks are written to RUN_DIR/stacks; after twice as long the run ends. "
        "null: no watchdog.",
        300.0,
        above=0,
    )
    loop_seconds: float = key(
        "The same for the event loop of the controller, which dispatches and must never be blocked.", 60.0, above=0
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_updates: int | None = key(
        "Save every this many updates (and at the end); null: only at the end.", 50, minimum=1
    )
    keep: int = key("Newest checkpoints kept.", 2, minimum=1)
    keep_best: int = key(
        "Besides these, checkpoints kept whose weights had the best evaluation; best.json names the first of them.",
        0,
        minimum=0,
    )
    best_metric: Literal["eval/accuracy_greedy", "eval/accuracy_sampled"] = key(
        "What makes an evaluation the best (keep_best).", "eval/accuracy_greedy"
    )
    write_timeout_seconds: float = key(
        "Deadline for the learner ranks to write a checkpoint, which they do while training goes on.", 1800.0, above=0
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    split: Literal["validation", "test"] = key("Which held-out split.", "test")
    every_updates: int | None = key(
        "Evaluate every this many updates, besides start and end; null: only those.", 20, minimum=1
    )
    num_problems: int = key("Problems of a periodic evaluation.", 200, minimum=1)
    num_problems_final: int = key("Problems of the evaluation at the start and at the end.", 500, minimum=1)
    completions_per_problem: int = key("Sampled completions for each problem of a periodic evaluation.", 1, minimum=1)
    completions_per_problem_final: int = key(
        "Sampled completions at the start and end; pass@k up to this k.", 8, minimum=1
    )
    temperature: float = key("Temperature of sampled evaluation.", 1.0, above=0)


@dataclass(frozen=True, kw_only=True)
class TrackerConfig:
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = key(
        "W&B: auto is online with an API key and offline without.", "auto"
    )
    project: str = key("W&B project.", "credence")
    entity: str | None = key("W&B entity; null: the account's default.", None)
    completions_per_table: int = key("Sampled completions shown at each evaluation.", 8, minimum=0)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    address: str = key(
        "'auto' joins the cluster of RAY_ADDRESS, as set in a Ray job, and without one starts Ray here; "
        "'local' always starts Ray here; or HOST:PORT.",
        "auto",
    )
