"""Checks per second through the verifier over checks per second of bare calls in this process.

Run: python benchmarks/verifier.py (no arguments, under two minutes on two cores). Groups of 8 distinct answers:
rational answers are made here; for mathematics, expressions of the kinds that competition problems end in.
The last line is one line of JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from actors.rewards.answer_verifier import AnswerVerifier
from actors.rewards.math_check import check_math
from actors.rewards.rational_check import check_rational
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.interfaces import AnswerKind
from system.records import PolicyVersions, Prompt, Trajectory, TrajectoryGroup

GROUP_SIZE = 8
NUM_GROUPS: dict[AnswerKind, int] = {"rational": 2_000, "math": 60}
NUM_WARM_UP_GROUPS = 10
TIMEOUT_SECONDS = 5.0
MEMORY_LIMIT_MIB = 1024


class LastLineTask(Gsm8kChainsTask):
    """Answers as in the chains task, compared as `answer_kind` says."""

    def __init__(self, answer_kind: AnswerKind) -> None:
        super().__init__()
        self.answer_kind = answer_kind


def make_answers(answer_kind: AnswerKind, *, group_id: int) -> tuple[str, list[str]]:
    """A reference and `GROUP_SIZE` distinct answers, the first of them right."""
    if answer_kind == "rational":
        return str(group_id), [f"{group_id}.0", *(f"{group_id}.{offset}" for offset in range(1, GROUP_SIZE))]
    n = group_id + 2
    reference = rf"\frac{{{n}}}{{{2 * n + 1}}}"
    answers = [
        rf"\dfrac{{{2 * n}}}{{{4 * n + 2}}}",
        f"{n}/{n + 2}",
        rf"{n}\sqrt{{{n + 1}}}",
        rf"\left( {n}, \frac{{\pi}}{{{n}}} \right)",
        rf"x^2+{n}x+1",
        rf"[{n},\infty)",
        rf"{n}\pi",
        f"{n}.5",
    ]
    return reference, answers


def make_group(answer_kind: AnswerKind, *, group_id: int) -> TrajectoryGroup:
    reference, answers = make_answers(answer_kind, group_id=group_id)
    zero = np.zeros(1, dtype=np.int32)
    trajectories = tuple(
        Trajectory(
            index=index,
            token_ids=np.zeros(2, dtype=np.int32),
            is_sampled=np.array([False, True]),
            logprobs=np.zeros(2, dtype=np.float32),
            policy_versions=PolicyVersions(starts=zero, versions=zero),
            text=f"48/2=24\n#{answer}",
            finish_reason="stop",
        )
        for index, answer in enumerate(answers)
    )
    prompt = Prompt(prompt_id=str(group_id), token_ids=zero, text="", reference_answer=reference, task="chains")
    return TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=trajectories)


def measure_worker(answer_kind: AnswerKind, *, num_processes: int) -> tuple[float, float]:
    """Seconds to start, and checks per second."""
    start = time.perf_counter()
    verifier = AnswerVerifier(
        LastLineTask(answer_kind),
        num_processes=num_processes,
        timeout_seconds=TIMEOUT_SECONDS,
        memory_limit_mib=MEMORY_LIMIT_MIB,
    )
    start_seconds = time.perf_counter() - start
    groups = [make_group(answer_kind, group_id=group_id) for group_id in range(NUM_GROUPS[answer_kind])]
    start = time.perf_counter()
    for group in groups:
        reasons = [term.reason for term in verifier.score(group)]
        if reasons != ["right"] + ["wrong"] * (GROUP_SIZE - 1):
            raise RuntimeError(f"unexpected verdicts in group {group.group_id}: {reasons}")
    seconds = time.perf_counter() - start
    verifier.close()
    return start_seconds, len(groups) * GROUP_SIZE / seconds


def measure_bare(answer_kind: AnswerKind, *, check: Callable[[str, str], tuple[str, float, str]]) -> float:
    """Checks per second of the check function alone, in this process and without limits."""
    num_groups = NUM_GROUPS[answer_kind]
    start = 0.0
    # The first groups fill the libraries' caches; they are other groups than those measured.
    for group_id in range(-NUM_WARM_UP_GROUPS, num_groups):
        if group_id == 0:
            start = time.perf_counter()
        reference, answers = make_answers(answer_kind, group_id=group_id % (2 * num_groups))
        for answer in answers:
            check(answer, reference)
    return num_groups * GROUP_SIZE / (time.perf_counter() - start)


def main() -> None:
    figures: dict[str, float] = {}
    checks: dict[AnswerKind, Callable[[str, str], tuple[str, float, str]]] = {
        "rational": check_rational,
        "math": check_math,
    }
    for answer_kind, check in checks.items():
        bare = measure_bare(answer_kind, check=check)
        figures[f"{answer_kind}_bare_checks_per_second"] = bare
        for num_processes in (1, 2):
            start_seconds, rate = measure_worker(answer_kind, num_processes=num_processes)
            figures[f"{answer_kind}_worker_{num_processes}_checks_per_second"] = rate
            figures[f"{answer_kind}_worker_{num_processes}_over_bare"] = rate / bare
            figures[f"{answer_kind}_worker_{num_processes}_start_seconds"] = start_seconds
            print(f"{answer_kind}: bare {bare:.0f}/s, {num_processes} process(es) {rate:.0f}/s")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
