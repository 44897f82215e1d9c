"""`credence belief`: one completion of a run, step by step, with what the policy believed.

RUN_DIR/rollouts/*.jsonl ──> the group ──> compute_belief ──> a table: steps down, hypotheses across
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from system.algorithms.barl.belief import Belief, compute_belief
from system.algorithms.barl.records import BeliefTrace, read_trace
from system.commands.completion_source import policy_tokenizer
from system.config.algorithms import algorithm_options
from system.config.load import load_config
from system.config.schema import Config
from system.errors import ConfigError
from system.interfaces import Tokenizer

_MAX_STEP_CHARACTERS = 60


def main(argv: Sequence[str]) -> int:
    """Print the table; returns the exit code. Raises ConfigError."""
    options = _parse(argv)
    run_dir = Path(options.run_dir)
    config = _load_config(run_dir)
    record = find_group(run_dir, group_id=options.group)
    traces = _traces(record, run_dir=run_dir)
    if not 0 <= options.completion < len(traces):
        raise ConfigError(
            "--completion", given=options.completion, expected=f"0 to {len(traces) - 1}", fix="--completion 0"
        )
    trace, completion = traces[options.completion], record["completions"][options.completion]
    is_right = completion["rewards"].get("verifier") == 1.0
    beta = getattr(algorithm_options(config.algorithm), "beta", 0.0)
    belief = compute_belief(trace.answer_logprobs, is_right=is_right, beta=beta)
    token_ids = [token for start, end in completion["sampled_spans"] for token in completion["token_ids"][start:end]]
    steps = step_texts(token_ids, trace=trace, tokenizer=policy_tokenizer(config))
    console = Console()
    console.print(
        f"group {record['group_id']}, policy version {trace.policy_version}, completion {options.completion} of "
        f"{len(traces)}, verifier {completion['rewards'].get('verifier')}\n{record['prompt']}",
        markup=False, highlight=False,
    )  # fmt: skip
    console.print(belief_table(belief, trace=trace, steps=steps))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="credence belief",
        description="Draw the belief of one recorded completion of a run with algorithm.name=barl or progress: steps "
        "down, hypotheses across. w is the weight of a hypothesis, P the probability that the policy, asked after this "
        "step, gives its answer; * marks the largest weight, > the steps at which it moved.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--group", type=int, metavar="ID", help="group_id; default the newest recorded group")
    parser.add_argument("--completion", type=int, default=0, metavar="I", help="index in the group; default 0")
    return parser.parse_args(list(argv))


def _load_config(run_dir: Path) -> Config:
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ConfigError("RUN_DIR", given=str(run_dir), expected="a run folder with config.yaml", fix="e.g. runs/NAME")
    return load_config([path], check_devices=False)


def find_group(run_dir: Path, *, group_id: int | None) -> dict[str, Any]:
    """The recorded line of a group, the newest one for None. Raises ConfigError that says which there are."""
    known: list[int] = []
    for record in _recorded_groups(run_dir):
        if group_id in (None, record["group_id"]):
            return record
        known.append(record["group_id"])
    raise ConfigError(
        "--group",
        given=group_id,
        expected=f"a group of {run_dir / 'rollouts'}: {', '.join(map(str, sorted(known))) or 'there is none'}",
        fix="choose one of those; a run keeps one group of each of its newest updates",
    )


def _recorded_groups(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Newest first."""
    for path in sorted((run_dir / "rollouts").glob("*.jsonl"), reverse=True):
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                yield json.loads(line)


def _traces(record: Mapping[str, Any], *, run_dir: Path) -> list[BeliefTrace]:
    try:
        return [read_trace(each) for each in record["evidence"]]
    except KeyError as error:
        raise ConfigError(
            "RUN_DIR",
            given=str(run_dir),
            expected="a run that asked for beliefs (algorithm.name=barl or progress)",
            fix="train with configs/algorithm/barl.yaml",
        ) from error


def step_texts(token_ids: Sequence[int], *, trace: BeliefTrace, tokenizer: Tokenizer) -> list[str]:
    """The text of each step; `token_ids` are the sampled ones."""
    starts = [0, *trace.step_ends.tolist()[:-1]]
    return [
        tokenizer.decode(token_ids[start:end], skip_special_tokens=True)
        for start, end in zip(starts, trace.step_ends.tolist(), strict=True)
    ]


def belief_table(belief: Belief, *, trace: BeliefTrace, steps: Sequence[str]) -> Table:
    """Row t is the belief after t steps, beside the step that led there and what it was worth before it was taken."""
    table = Table()
    table.add_column("")
    table.add_column("step", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("progress", justify="right")
    for number, answer in enumerate(trace.hypotheses.answers):
        stated = " (stated)" if number == trace.stated else ""
        name = "reference " if number == 0 else ""
        table.add_column(f"{name}{_short(answer)}{stated}\n  w      P", justify="right")
    probabilities = np.exp(trace.answer_logprobs.astype(np.float64))
    favourites = belief.posterior.argmax(axis=1)
    for row, weights in enumerate(belief.posterior):
        has_moved = row > 0 and favourites[row] != favourites[row - 1]
        table.add_row(
            ">" if has_moved else "",
            "" if row == 0 else _short(steps[row - 1].rstrip("\n").replace("\n", " / ")),
            "" if row == 0 else f"{belief.step_values[row - 1]:+.2f}",
            "" if row == 0 else f"{belief.rewards[row - 1, 0]:+.2f}",
            *(
                f"{'*' if number == favourites[row] else ' '}{weight:.2f}  {probability:.2f}"
                for number, (weight, probability) in enumerate(zip(weights, probabilities[row], strict=True))
            ),
        )
    return table


def _short(text: str) -> str:
    return text if len(text) <= _MAX_STEP_CHARACTERS else f"{text[: _MAX_STEP_CHARACTERS - 3]}..."
