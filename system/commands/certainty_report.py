"""`credence certainty-report`: is the policy more certain of its right answers than of its wrong ones?

    recorded groups of a run or file, or sampled on the spot ──> certainties of right and of wrong completions
        ──> Mann-Whitney tests, certainty_report.json, certainty_report.png

The statistics: system/numerics/certainty_statistics.py. Figure 8 of Zhao et al., "Learning to Reason without External
Rewards", arXiv 2505.19590, is such a pair of distributions.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from system.algorithms.rewards import SELF_CERTAINTY, VERIFIER, find_term
from system.commands.completion_source import (
    COMPLETIONS_FILE,
    load_monitored_config,
    new_folder,
    sample_held_out,
)
from system.config.load import split_inputs
from system.config.machine import run_directory
from system.data.group_files import FiledGroup, read_groups
from system.data.json_values import JsonValue
from system.errors import ConfigError
from system.numerics.certainty_statistics import (
    CertaintyComparison,
    WithinProblemComparison,
    compare_certainty,
    compare_within_problems,
)
from system.records import ScoredGroup
from system.reports.certainty_figures import draw_certainty
from system.reports.recorder import finite, write_json_atomically

DEFAULT_NUM_COMPLETIONS = 8
_REPORT, _FIGURE = "certainty_report.json", "certainty_report.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedCertainties:
    """Every completion with a certainty and a verdict; n of them."""

    certainty: tuple[float, ...]  # n, nats
    is_right: tuple[bool, ...]  # n
    problem_ids: tuple[str, ...]  # n; one for each group
    num_left_out: int  # without tokens, or their verdict is invalid

    def of(self, *, is_right: bool) -> list[float]:
        """The certainties of the right, or of the wrong completions."""
        return [value for value, right in zip(self.certainty, self.is_right, strict=True) if right == is_right]


def main(argv: Sequence[str]) -> int:
    """Print the statistics and one line of JSON; returns the exit code. Raises ConfigError."""
    options = _parse(argv)
    paths, overrides = split_inputs(options.inputs)
    for path in paths:
        if not Path(path).exists():
            expected = "an existing run folder, .jsonl file or YAML file"
            raise ConfigError("RUN_DIR|FILE|CONFIG", given=path, expected=expected, fix="e.g. runs/demo")
    recorded = [path for path in paths if Path(path).is_dir() or path.endswith(".jsonl")]
    source: dict[str, JsonValue]
    if recorded:
        _refuse_unused(options, recorded=recorded)
        source_path = Path(recorded[0])
        groups = [each.scored for each in _recorded_groups(source_path)]
        default = (source_path if source_path.is_dir() else source_path.parent) / "certainty_report"
        folder = new_folder(options.output, default=default, files=(_REPORT, _FIGURE))
        source = {"model": None, "split": None, "completions": str(source_path)}
    else:
        num_completions = DEFAULT_NUM_COMPLETIONS if options.num_completions is None else options.num_completions
        if num_completions < 1:
            raise ConfigError("--num-completions", given=num_completions, expected="at least 1", fix="e.g. 8")
        config = load_monitored_config(paths, overrides=overrides, command="certainty-report", check_devices=True)
        default = run_directory(config.run) / f"certainty-{config.run.name}"
        folder = new_folder(options.output, default=default, files=(_REPORT, _FIGURE, COMPLETIONS_FILE))
        sampled = sample_held_out(config, num_completions=num_completions, folder=folder)
        if isinstance(sampled, signal.Signals):
            return 128 + sampled
        groups = list(sampled)
        completions = str(folder / COMPLETIONS_FILE)
        source = {"model": config.model.path, "split": config.evaluation.split, "completions": completions}
    _report(judge(groups), source=source, folder=folder)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="credence certainty-report",
        description="Self-certainty of right against wrong completions: of what a run recorded (its folder), of a file "
        "that 'credence select' wrote, or of model.path on held-out problems. Writes certainty_report.json and .png.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="RUN_DIR|FILE.jsonl|CONFIG|key=value",
        help="one run folder or one file of scored groups; or YAML files, then overrides",
    )
    parser.add_argument(
        "--num-completions",
        type=int,
        metavar="N",
        help=f"completions sampled for each problem; default {DEFAULT_NUM_COMPLETIONS}",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="default certainty_report in the run folder, or RUN.DIRECTORY/certainty-RUN.NAME",
    )
    return parser.parse_intermixed_args(list(argv))


def _refuse_unused(options: argparse.Namespace, *, recorded: Sequence[str]) -> None:
    unused = [text for text in options.inputs if text != recorded[0]]
    if options.num_completions is not None:
        unused.append("--num-completions")
    if unused:
        raise ConfigError(
            " ".join(unused),
            given=" ".join(options.inputs),
            expected=f"{recorded[0]} alone: recorded completions are read as they are",
            fix="leave the others out, or give a configuration with model.path=RUN_DIR/checkpoints/update_.../policy",
        )


def _recorded_groups(path: Path) -> list[FiledGroup]:
    """The groups of a run folder or of a file in which somebody was judged by both scorers. Raises ConfigError."""
    files = sorted((path / "rollouts").glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ConfigError(
            str(path),
            given="no rollouts/*.jsonl",
            expected="the folder of a run that has made an update",
            fix="give runs/NAME, or a configuration and model.path",
        )
    # recorded lines hold token ids; plain text has no rewards, so it ends in the error below
    filed = [each for file in files for each in read_groups(file, task_name="", tokenise=lambda text: [0] * len(text))]
    for scorer, fix in (
        (SELF_CERTAINTY, f"a reward term {{scorer: {SELF_CERTAINTY}, weight: 0}} monitors it"),
        (VERIFIER, "give a file that 'credence select' wrote"),
    ):
        if not any(each.scorer == scorer for filed_group in filed for row in filed_group.scored.terms for each in row):
            raise ConfigError(
                str(path),
                given=f"{len(filed)} recorded groups without {scorer}",
                expected=f"completions with rewards by {VERIFIER} and {SELF_CERTAINTY}",
                fix=f"{fix}; or sample anew: credence certainty-report CONFIG "
                "model.path=RUN_DIR/checkpoints/update_.../policy",
            )
    return filed


def judge(groups: Sequence[ScoredGroup]) -> JudgedCertainties:
    """Right or wrong, and how certain; an invalid verdict is neither, so its completion is left out and counted."""
    certainty, right, problem_ids, num_left_out = [], [], [], 0
    for number, scored in enumerate(groups):
        for index in range(len(scored.terms)):
            verdict = find_term(scored, index, scorer=VERIFIER)
            certain = find_term(scored, index, scorer=SELF_CERTAINTY)
            if verdict is None or certain is None or "invalid" in (verdict.status, certain.status):
                num_left_out += 1
                continue
            certainty.append(certain.value)
            right.append(verdict.value == 1.0)
            problem_ids.append(f"{number}:{scored.group.prompt.prompt_id}")
    return JudgedCertainties(
        certainty=tuple(certainty), is_right=tuple(right), problem_ids=tuple(problem_ids), num_left_out=num_left_out
    )


def _report(judged: JudgedCertainties, *, source: dict[str, JsonValue], folder: Path) -> None:
    """Writes the JSON and the figure, prints the statistics and the closing line."""
    right, wrong = judged.of(is_right=True), judged.of(is_right=False)
    pooled = compare_certainty(right, wrong=wrong) if right and wrong else None
    within = (
        compare_within_problems(judged.certainty, right=judged.is_right, problem_ids=judged.problem_ids)
        if judged.certainty
        else None
    )
    facts = source | {
        "num_problems": len(set(judged.problem_ids)),
        "num_completions": len(judged.certainty),
        "num_left_out": judged.num_left_out,
    }
    values = _summary("right", right) | _summary("wrong", wrong) | _pooled(pooled) | _within(within)
    write_json_atomically(folder / _REPORT, facts | values)
    title = f"Self-certainty of {len(judged.certainty):,} completions: {source['model'] or source['completions']}"
    draw_certainty(right, wrong=wrong, path=folder / _FIGURE, title=title)
    print(report_text(judged, pooled=pooled, within=within), flush=True)
    print(f"Written to {folder}", file=sys.stderr)
    closing = facts | {"output": str(folder)} | {f"certainty/{name}": value for name, value in values.items()}
    print(json.dumps(finite(closing)))


def report_text(
    judged: JudgedCertainties, *, pooled: CertaintyComparison | None, within: WithinProblemComparison | None
) -> str:
    """The statistics for reading."""
    lines = [f"{'completions':<13}{'number':>9}{'mean':>10}{'median':>10}   self-certainty in nats"]
    for name, is_right in (("right", True), ("wrong", False)):
        values = judged.of(is_right=is_right)
        lines.append(
            f"{name:<13}{len(values):>9,}{np.mean(values):>10.4f}{np.median(values):>10.4f}"
            if values
            else f"{name:<13}{0:>9}"
        )
    if judged.num_left_out:
        lines.append(f"left out: {judged.num_left_out:,} without tokens or without a valid verdict")
    if pooled is None:
        return "\n".join([*lines, "No test: there are no right or no wrong completions to compare."])
    lines.append(
        f"All completions together: Mann-Whitney U = {pooled.u_statistic:,.1f}, p = {pooled.p_value:.3g}, "
        f"AUC {pooled.auc:.3f}, rank-biserial correlation {pooled.rank_biserial:+.3f}"
    )
    if within is not None and within.num_problems:
        auc = within.auc
        lines.append(
            f"Within problems: AUC {auc['mean']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}), rank-biserial "
            f"correlation {within.rank_biserial:+.3f}, over {within.num_problems} problems that have both"
        )
    else:
        lines.append("Within problems: no test, as no problem has both right and wrong completions.")
    return "\n".join([*lines, "An AUC above 0.5 means that right completions are the more certain ones."])


def _summary(name: str, values: Sequence[float]) -> dict[str, JsonValue]:
    return {
        f"{name}_num_completions": len(values),
        f"{name}_mean": float(np.mean(values)) if values else None,
        f"{name}_median": float(np.median(values)) if values else None,
    }


def _pooled(comparison: CertaintyComparison | None) -> dict[str, JsonValue]:
    names = ("u_statistic", "p_value", "auc", "rank_biserial")
    return {name: None if comparison is None else asdict(comparison)[name] for name in names}


def _within(comparison: WithinProblemComparison | None) -> dict[str, JsonValue]:
    if comparison is None:
        return {"within_num_problems": 0}
    return {
        "within_num_problems": comparison.num_problems,
        "within_num_problems_left_out": comparison.num_problems_left_out,
        "within_auc": comparison.auc["mean"],
        "within_auc_low": comparison.auc["low"],
        "within_auc_high": comparison.auc["high"],
        "within_rank_biserial": comparison.rank_biserial,
    }
