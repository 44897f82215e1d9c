"""`credence select`: which of N completions of a problem to hand out, and how often that one is right.

    completions of a file, or sampled on the spot ──> verdicts, certainties ──> classes of equal answers
        ──> selectors at N = 1, 2, 4, ... ──> table, select.json, select.png

Selectors and their accuracy: system/numerics/voting.py. Source: Kang et al., "Scalable Best-of-N Selection for Large
Language Models via Self-Certainty", arXiv 2502.18581.
"""

from __future__ import annotations

import argparse
import functools
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.rewards.answers import answer_classes, read_answer, start_answer_sandbox
from system.algorithms.rewards import SELF_CERTAINTY, find_term, is_right
from system.commands.completion_source import (
    COMPLETIONS_FILE,
    check_scorable,
    is_scored,
    load_monitored_config,
    new_folder,
    policy_tokenizer,
    sample_held_out,
    score_again,
)
from system.config.load import split_inputs
from system.config.machine import run_directory
from system.config.schema import Config, TaskConfig
from system.data.group_files import FiledGroup, read_groups
from system.data.json_values import JsonValue
from system.data.tasks import make_task
from system.errors import ConfigError
from system.numerics.pass_at_k import mean_with_interval, pass_at_k
from system.numerics.voting import (
    MAJORITY,
    SelectionTable,
    accuracy_against_n,
    borda_choice,
    highest_certainty_choice,
    majority_choice,
)
from system.records import ScoredGroup
from system.reports.certainty_figures import CurvePoint, draw_selection
from system.reports.recorder import write_json_atomically
from system.reports.stage_display import StageDisplay

# Section 6.2 of the paper: p = 0.3 for N <= 16, p = 1.2 for N >= 32; the best one depends on model and task.
DEFAULT_POWERS = (0.3, 1.2)
DEFAULT_NUM_COMPLETIONS = 32
PASS_AT_N = "pass_at_n"
_FILES = ("select.json", "select.png", COMPLETIONS_FILE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedCompletions:
    """What selection needs to know of P problems with N completions each."""

    prompt_ids: tuple[str, ...]  # P
    certainty: NDArray[np.float64]  # [P, N], nats; NaN without tokens
    class_ids: NDArray[np.int64]  # [P, N]; equal answers of a problem share one, -1: no answer
    right: NDArray[np.bool_]  # [P, N]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRow:
    """Accuracy of one selector at one N."""

    selector: str
    point: CurvePoint
    gain: CurvePoint | None  # over majority voting; None for pass@N, which selects nothing


def main(argv: Sequence[str]) -> int:
    """Print the table and one line of JSON; returns the exit code. Raises ConfigError."""
    options = _parse(argv)
    powers = tuple(options.power or DEFAULT_POWERS)
    _check_options(options, powers=powers)
    paths, overrides = split_inputs(options.inputs)
    config = load_monitored_config(paths, overrides=overrides, command="select", check_devices=not options.completions)
    _check_task(config.task)
    filed = _read_file(options.completions, config=config, limit=options.num_completions) if options.completions else []
    default = run_directory(config.run) / f"select-{config.run.name}"
    folder = new_folder(options.output, default=default, files=_FILES)
    groups: Sequence[ScoredGroup] | signal.Signals = [each.scored for each in filed]
    uses_policy = not all(is_scored(each.scored) for each in filed) or not filed
    if not filed:
        num_completions = options.num_completions or DEFAULT_NUM_COMPLETIONS
        groups = sample_held_out(config, num_completions=num_completions, folder=folder)
    elif uses_policy:
        groups = score_again(config, groups=[each.scored for each in filed], folder=folder)
    if isinstance(groups, signal.Signals):
        return 128 + groups
    judged = judge(groups, config=config)
    table = accuracy_against_n(
        judged.certainty,
        class_ids=judged.class_ids,
        right=judged.right,
        borda_powers=powers,
        num_subsets=options.subsets,
        seed=config.run.seed,
    )
    source: dict[str, JsonValue] = {
        "model": config.model.path if uses_policy else None,
        "split": None if filed else config.evaluation.split,
        "completions": options.completions or str(folder / COMPLETIONS_FILE),
    }
    _report(table, judged=judged, powers=powers, source=source, seed=config.run.seed, folder=folder)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="credence select",
        description="Best-of-N selection by self-certainty, Borda vote, majority and chance, on held-out problems "
        "(evaluation.split, evaluation.num_problems_final, evaluation.temperature, run.seed) or on completions of a "
        "file. Prints accuracy against N and writes select.json, select.png and completions.jsonl.",
    )
    parser.add_argument("inputs", nargs="*", metavar="CONFIG|key=value", help="YAML files, then overrides")
    parser.add_argument(
        "--completions", metavar="FILE.jsonl", help="groups of a run or of another select, or plain text lines"
    )
    parser.add_argument(
        "--num-completions",
        type=int,
        metavar="N",
        help=f"completions of each problem; default {DEFAULT_NUM_COMPLETIONS}, with --completions all",
    )
    parser.add_argument(
        "--power",
        type=float,
        action="append",
        metavar="P",
        help="power of a Borda vote, may be repeated; default "
        f"{' and '.join(f'{power:g}' for power in DEFAULT_POWERS)} (arXiv 2502.18581, for N <= 16 and N >= 32)",
    )
    parser.add_argument(
        "--subsets", type=int, default=8, metavar="S", help="subsets of each problem below N; default 8"
    )
    parser.add_argument("--output", metavar="DIR", help="default RUN.DIRECTORY/select-RUN.NAME, or the next free one")
    return parser.parse_intermixed_args(list(argv))


def _check_options(options: argparse.Namespace, *, powers: Sequence[float]) -> None:
    for name, value in (("--num-completions", options.num_completions), ("--subsets", options.subsets)):
        if value is not None and value < 1:
            raise ConfigError(name, given=value, expected="at least 1", fix=f"e.g. {name} 8")
    if len(set(powers)) != len(powers) or not all(0 <= power <= 100 for power in powers):
        raise ConfigError(
            "--power", given=", ".join(f"{power:g}" for power in powers), expected="different numbers from 0 to 100",
            fix="e.g. --power 0.3 --power 1.2",
        )  # fmt: skip


def _check_task(task: TaskConfig) -> None:
    if make_task(task).answer_kind == "code":
        raise ConfigError(
            "task.name",
            given=task.name,
            expected="a task whose answers can be compared, as votes are counted over equal answers",
            fix="credence certainty-report takes programs as well",
        )


def _read_file(path: str, *, config: Config, limit: int | None) -> list[FiledGroup]:
    """The first `limit` completions of each group; all groups have equally many. Raises ConfigError."""

    tokenizer = functools.cache(lambda: policy_tokenizer(config))
    filed = read_groups(
        Path(path),
        task_name=config.task.name,
        tokenise=lambda text: tokenizer().encode(text, add_special_tokens=False),
    )
    filed = first_completions(filed, limit=limit)
    unscored = [each for each in filed if not is_scored(each.scored)]
    if unscored:
        check_scorable(unscored, config=config, tokenizer=tokenizer())
    return filed


def first_completions(filed: Sequence[FiledGroup], *, limit: int | None) -> list[FiledGroup]:
    """The groups cut to `limit` completions (None: as many as the first has). Raises ConfigError for unequal ones."""
    wanted = limit or len(filed[0].scored.terms)
    smallest = min(len(each.scored.terms) for each in filed)
    for each in filed:
        count = len(each.scored.terms)
        if count < wanted or (limit is None and count != wanted):
            expected = f"at least --num-completions {wanted}" if limit else f"{wanted}, as at {filed[0].where}"
            raise ConfigError(
                each.where,
                given=f"{count} completions",
                expected=expected,
                fix=f"--num-completions {smallest} takes the first {smallest} of every problem",
            )
    return [
        FiledGroup(
            where=each.where,
            scored=replace(
                each.scored,
                group=replace(each.scored.group, trajectories=each.scored.group.trajectories[:wanted]),
                terms=each.scored.terms[:wanted],
            ),
        )
        for each in filed
    ]


def judge(groups: Sequence[ScoredGroup], *, config: Config) -> JudgedCompletions:
    """Puts the answers of each problem into classes, in the verifier's killable processes; as many completions each."""
    task, reward = make_task(config.task), config.reward
    progress = StageDisplay()
    progress.begin("comparing answers", total=len(groups))
    class_ids = []
    with start_answer_sandbox(
        task.answer_kind,
        num_processes=reward.num_workers * reward.processes_per_worker,
        timeout_seconds=reward.timeout_seconds,
        memory_limit_mib=reward.memory_limit_mib,
    ) as sandbox:
        for scored in groups:
            answers = [
                read_answer(
                    each.text,
                    finish_reason=each.finish_reason,
                    task=task,
                    prompt=scored.group.prompt.text,
                    after_thinking=reward.answer_after_thinking,
                )
                for each in scored.group.trajectories
            ]
            class_ids.append([answer.class_index for answer in answer_classes(answers, sandbox=sandbox)])
            progress.advance()
    progress.end()
    return JudgedCompletions(
        prompt_ids=tuple(scored.group.prompt.prompt_id for scored in groups),
        certainty=np.array(
            [[_certainty(scored, index) for index in range(len(scored.terms))] for scored in groups],
            dtype=np.float64,
        ),
        class_ids=np.array(class_ids, dtype=np.int64),
        right=np.array([[is_right(scored, index) for index in range(len(scored.terms))] for scored in groups]),
    )


def _certainty(scored: ScoredGroup, index: int) -> float:
    certainty = find_term(scored, index, scorer=SELF_CERTAINTY)
    assert certainty is not None, "only scored groups are judged"
    return certainty.value if certainty.status == "ok" else np.nan


def selection_rows(table: SelectionTable, *, right: NDArray[np.bool_]) -> list[SelectionRow]:
    """The rows of pass@N, the upper bound of every selector, and those of the table."""
    num_completions = right.shape[1]
    counts = right.sum(axis=1).tolist()
    rows = []
    for size in sorted({row.num_completions for row in table.rows}):
        values = [pass_at_k(num_completions, num_correct=count, k=size) for count in counts]
        point = CurvePoint(num_completions=size, **mean_with_interval(values))
        rows.append(SelectionRow(selector=PASS_AT_N, point=point, gain=None))
    for row in table.rows:
        point = CurvePoint(num_completions=row.num_completions, **row.accuracy)
        gain = CurvePoint(num_completions=row.num_completions, **row.gain_over_majority)
        rows.append(SelectionRow(selector=row.selector, point=point, gain=None if row.selector == MAJORITY else gain))
    return rows


def choices(judged: JudgedCompletions, *, powers: Sequence[float]) -> list[dict[str, JsonValue]]:
    """Which completion each selector picks of all N: the first of the most likely ones."""
    picked: list[dict[str, JsonValue]] = []
    for prompt_id, certainty, class_ids in zip(judged.prompt_ids, judged.certainty, judged.class_ids, strict=True):
        probabilities = {
            "highest_certainty": highest_certainty_choice(certainty, class_ids=class_ids),
            **{f"borda_p{power:g}": borda_choice(certainty, class_ids=class_ids, power=power) for power in powers},
            MAJORITY: majority_choice(class_ids),
        }
        picked.append({"prompt_id": prompt_id} | {name: int(np.argmax(each)) for name, each in probabilities.items()})
    return picked


def _report(
    table: SelectionTable,
    *,
    judged: JudgedCompletions,
    powers: Sequence[float],
    source: dict[str, JsonValue],
    seed: int,
    folder: Path,
) -> None:
    """Writes the JSON and the figure, prints the table and the closing line."""
    rows = selection_rows(table, right=judged.right)
    num_completions = judged.right.shape[1]
    facts = source | {"num_problems": table.num_problems, "num_completions": num_completions}
    write_json_atomically(
        folder / "select.json",
        facts
        | {
            "num_subsets": table.num_subsets,
            "seed": seed,
            "borda_powers": list(powers),
            "num_unanswered": int((judged.class_ids < 0).sum()),
            "rows": [_row_as_json(row) for row in rows],
            "choices": choices(judged, powers=powers),
        },
    )
    curves: dict[str, list[CurvePoint]] = {}
    for row in rows:
        curves.setdefault(label(row.selector), []).append(row.point)
    draw_selection(
        curves,
        path=folder / "select.png",
        title=f"Best of N, {table.num_problems} problems: {source['model'] or source['completions']}",
    )
    print(table_text(rows, num_problems=table.num_problems, num_subsets=table.num_subsets), flush=True)
    print(f"Written to {folder}", file=sys.stderr)
    values: dict[str, JsonValue] = {}
    for row in rows:
        if row.point.num_completions == num_completions:
            values |= _interval(f"select/accuracy_{row.selector}", row.point)
            if row.gain is not None:
                values |= _interval(f"select/gain_over_majority_{row.selector}", row.gain)
    print(json.dumps(facts | {"output": str(folder)} | values))


def label(selector: str) -> str:
    """A selector's name for reading."""
    if selector.startswith("borda_p"):
        return f"Borda p={selector.removeprefix('borda_p')}"
    return {PASS_AT_N: "pass@N", "highest_certainty": "highest certainty"}.get(selector, selector)


def table_text(rows: Sequence[SelectionRow], *, num_problems: int, num_subsets: int) -> str:
    """Accuracy in per cent by N and selector, with half the width of its interval; then the gains at the largest N."""
    selectors = list(dict.fromkeys(row.selector for row in rows))
    points = {(row.selector, row.point.num_completions): row.point for row in rows}
    sizes = sorted({row.point.num_completions for row in rows})
    width = max(12, *(len(label(selector)) for selector in selectors))
    lines = [
        f"Accuracy in % on {num_problems} problems, ± half a 95 % interval over problems"
        + (f"; below N = {sizes[-1]} the mean of {num_subsets} subsets of each problem" if len(sizes) > 1 else ""),
        "   N  " + "  ".join(label(selector).rjust(width) for selector in selectors),
    ]
    lines += [
        f"{size:>4}  " + "  ".join(_percent(points[selector, size]).rjust(width) for selector in selectors)
        for size in sizes
    ]
    lines.append(f"Against majority voting at N = {sizes[-1]}, in points with 95 % intervals of the paired difference:")
    lines += [
        f"  {label(row.selector):<{width}}  {100 * row.gain.mean:+.1f} "
        f"({100 * row.gain.low:+.1f} to {100 * row.gain.high:+.1f})"
        for row in rows
        if row.gain is not None and row.gain.num_completions == sizes[-1]
    ]
    return "\n".join(lines)


def _percent(point: CurvePoint) -> str:
    return f"{100 * point.mean:.1f} ± {50 * (point.high - point.low):.1f}"


def _row_as_json(row: SelectionRow) -> dict[str, JsonValue]:
    values: dict[str, JsonValue] = {"selector": row.selector, "num_completions": row.point.num_completions}
    values |= _interval("accuracy", row.point)
    return values if row.gain is None else values | _interval("gain_over_majority", row.gain)


def _interval(name: str, point: CurvePoint) -> dict[str, JsonValue]:
    return {name: point.mean, f"{name}_low": point.low, f"{name}_high": point.high}
