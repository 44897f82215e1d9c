"""Does the credit of BARL agree with the verifier? On groups that the embedded policy samples, nothing is trained.

    python benchmarks/belief_credit.py [--num-problems 96]         (CPU, about two minutes on two cores)

16 completions for each held-out chain, each with its hypotheses and the policy's answers after every step, and from
them the advantages of several settings, beside those of GRPO. Per setting: the mean advantage of right and of wrong
completions (mean over their tokens), and `auc`, the probability that a right completion has more than a wrong one of
its group. GRPO has 1 by construction. The last line is one line of JSON; `barl_auc` is that of BARL as its authors
compute it, with the default options (target at least 0.95).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from system.algorithms.barl.barl import Barl  # noqa: E402
from system.algorithms.barl.options import BarlOptions, ProgressOptions  # noqa: E402
from system.algorithms.barl.records import BeliefTrace  # noqa: E402
from system.algorithms.base import Algorithm, Context  # noqa: E402
from system.algorithms.grpo import Grpo, GrpoOptions  # noqa: E402
from system.algorithms.progress import Progress  # noqa: E402
from system.algorithms.rewards import is_right  # noqa: E402
from system.commands.run_inputs import held_out_prompts, load_tokenizer  # noqa: E402
from system.config.load import load_config  # noqa: E402
from system.data.tasks import make_task  # noqa: E402
from system.records import ScoredGroup  # noqa: E402
from system.runtime.held_out_groups import sample_groups  # noqa: E402
from system.runtime.session import run_on_ray  # noqa: E402

NUM_COMPLETIONS = 16


def sampled_groups(num_problems: int) -> tuple[list[ScoredGroup], Context]:
    """Groups of the demo's policy with everything that BARL asks for."""
    config = load_config(
        [ROOT / "configs" / "demo.yaml", ROOT / "configs" / "algorithm" / "barl.yaml"],
        [f"evaluation.num_problems_final={num_problems}", f"evaluation.num_problems={num_problems}"],
    )
    task = make_task(config.task)
    prompts = held_out_prompts(config, task=task, tokenizer=load_tokenizer(config))
    groups: list[ScoredGroup] = []
    run_on_ray(
        config,
        lambda: sample_groups(config, prompts=prompts, num_completions=NUM_COMPLETIONS, on_group=groups.append),
    )
    return groups, Context(weights={"verifier": 1.0}, normalise_terms=False, task=task)


def reference_alone(group: ScoredGroup) -> ScoredGroup:
    """The group as Progress would have asked for it: hypothesis 0."""

    def cut(trace: BeliefTrace) -> BeliefTrace:
        return replace(
            trace,
            hypotheses=replace(trace.hypotheses, answers=trace.hypotheses.answers[:1]),
            answer_logprobs=trace.answer_logprobs[:, :1],
        )

    return replace(group, evidence=tuple(cut(trace) for trace in group.evidence or ()))


def measure(algorithm: Algorithm, groups: Sequence[ScoredGroup]) -> tuple[float, float, float]:
    """Mean advantage of right and of wrong completions, and the probability that they are ordered within a group."""
    right: list[float] = []
    wrong: list[float] = []
    orders: list[float] = []
    for group, credit in zip(groups, algorithm.credit(groups).groups, strict=True):
        trajectories = group.group.trajectories
        advantages = np.array(
            [
                values[trajectory.is_sampled].mean() if trajectory.num_sampled else 0.0
                for values, trajectory in zip(credit.advantages, trajectories, strict=True)
            ]
        )
        is_good = np.array([is_right(group, index) for index in range(len(advantages))])
        good, bad = advantages[is_good], advantages[~is_good]
        right.extend(good)
        wrong.extend(bad)
        if len(good) and len(bad):
            difference = good[:, None] - bad[None, :]
            orders.append(float(((difference > 0) + 0.5 * (difference == 0)).mean()))
    return float(np.mean(right)), float(np.mean(wrong)), float(np.mean(orders))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-problems", type=int, default=96)
    groups, context = sampled_groups(parser.parse_args().num_problems)
    num_mixed = sum(len({is_right(group, index) for index in range(NUM_COMPLETIONS)}) == 2 for group in groups)
    print(f"{len(groups)} groups, {num_mixed} of them with right and wrong completions\n")
    print("| credit | right | wrong | auc |\n|---|---|---|---|")
    alone = [reference_alone(group) for group in groups]
    settings: dict[str, tuple[Algorithm, Sequence[ScoredGroup]]] = {
        "grpo": (Grpo(GrpoOptions(), context=context), groups),
        "progress": (Progress(ProgressOptions(), context=context), alone),
        "barl": (Barl(BarlOptions(), context=context), groups),
        "barl_beta_0": (Barl(BarlOptions(beta=0.0), context=context), groups),
        "barl_whitened_over_the_batch": (Barl(BarlOptions(baseline="batch"), context=context), groups),
    }
    figures: dict[str, float] = {"num_groups": len(groups), "num_mixed_groups": num_mixed}
    for name, (algorithm, own) in settings.items():
        right, wrong, auc = measure(algorithm, own)
        print(f"| {name} | {right:+.3f} | {wrong:+.3f} | {auc:.3f} |", flush=True)
        figures[f"{name}_auc"] = auc
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
