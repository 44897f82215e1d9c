"""Does the credit of BARL agree with the verifier? On recorded groups of any run, with the policy of its model.path.

    python benchmarks/belief_credit.py RUN_DIR [--max-groups 100]

Each group gets its hypotheses and beliefs, and from them the advantages of several settings, beside those of GRPO. Per
setting: the mean advantage of right and of wrong completions (mean over their tokens), and `auc`, the probability that
a right completion has more than a wrong one of its group. GRPO has 1 by construction. Nothing is trained.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from actors.rewards.answer_verifier import AnswerVerifier
from actors.rewards.hypotheses import HypothesisFinder
from actors.rewards.worker import RewardWorker
from actors.scoring.belief import BeliefScorer
from actors.scoring.model import ScoringModel
from system.algorithms.rewards import is_right
from system.config.load import load_config
from system.config.machine import model_folder
from system.config.schema import BeliefConfig, Config
from system.data.group_files import read_groups
from system.data.samples import ScoredSamples, make_belief_samples, make_samples
from system.data.tasks import make_task
from system.records import ScoredGroup

WEIGHTS = {"verifier": 1.0}
REFERENCE_WEIGHTS = (0.0, 0.2, 0.5, 1.0, 2.0)


def grpo(group: ScoredGroup) -> ScoredSamples:
    return make_samples(group, reward_weights=WEIGHTS, baseline="mean", normalise_std=True)


def barl(group: ScoredGroup, *, config: BeliefConfig) -> ScoredSamples:
    return make_belief_samples(group, reward_weights=WEIGHTS, belief=config)


def progress(group: ScoredGroup) -> ScoredSamples:
    """Hypothesis 0 alone."""
    traces = tuple(
        replace(trace, outcomes=trace.outcomes[:1], answer_logprobs=trace.answer_logprobs[:, :1])
        for trace in group.belief_traces
    )
    return barl(replace(group, belief_traces=traces), config=BeliefConfig())


def outcome_of_reference_only(group: ScoredGroup) -> ScoredSamples:
    """outcome_i = 0 for i > 0: a wrong answer pays nobody."""
    traces = tuple(
        replace(trace, outcomes=trace.outcomes * (np.arange(len(trace.outcomes)) == 0)) for trace in group.belief_traces
    )
    return barl(replace(group, belief_traces=traces), config=BeliefConfig())


def settings() -> dict[str, Callable[[ScoredGroup], ScoredSamples]]:
    named: dict[str, Callable[[ScoredGroup], ScoredSamples]] = {"GRPO": grpo, "Progress": progress}
    for weight in REFERENCE_WEIGHTS:
        named[f"BARL, reference_weight={weight:g}"] = partial(barl, config=BeliefConfig(reference_weight=weight))
    named["BARL, weights not normalised"] = partial(barl, config=BeliefConfig(normalise_weights=False))
    named["BARL, outcome of the reference only"] = outcome_of_reference_only
    return named


def with_beliefs(config: Config, *, paths: Sequence[Path], max_groups: int) -> list[ScoredGroup]:
    task = make_task(config.task)
    path = str(model_folder(config.model.path) or config.model.path)
    model = ScoringModel(
        name="benchmark",
        config=config.scorer,
        model_path=path,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
    scorer = BeliefScorer(model, task=task, reduction="sum")
    reward = config.reward
    verifier = AnswerVerifier(
        task,
        num_processes=reward.processes_per_worker,
        timeout_seconds=reward.timeout_seconds,
        memory_limit_mib=reward.memory_limit_mib,
    )
    worker = RewardWorker([verifier], hypothesis_finder=HypothesisFinder(verifier, max_candidates=5))
    groups: list[ScoredGroup] = []
    try:
        for path_of_groups in paths:
            for filed in read_groups(
                path_of_groups,
                task_name=config.task.name,
                tokenise=lambda text: model.tokenizer.encode(text, add_special_tokens=False),
            ):
                group = filed.scored.group
                scored = worker.score(group, with_hypotheses=True)
                assert scored.hypotheses is not None
                groups.append(replace(scored, belief_traces=scorer.traces(group, hypotheses=scored.hypotheses)))
                if len(groups) == max_groups:
                    return groups
    finally:
        worker.close()
    return groups


def print_row(name: str, *, groups: Sequence[ScoredGroup], credit: Callable[[ScoredGroup], ScoredSamples]) -> None:
    right: list[float] = []
    wrong: list[float] = []
    orders: list[float] = []
    for group in groups:
        advantages = np.array(
            [
                advantages[trajectory.is_sampled].mean() if trajectory.num_sampled else 0.0
                for advantages, trajectory in zip(credit(group).advantages, group.group.trajectories, strict=True)
            ]
        )
        is_good = np.array([is_right(group, index) for index in range(len(advantages))])
        good, bad = advantages[is_good], advantages[~is_good]
        right.extend(good)
        wrong.extend(bad)
        if len(good) and len(bad):
            difference = good[:, None] - bad[None, :]
            orders.append(float(((difference > 0) + 0.5 * (difference == 0)).mean()))
    print(f"| {name} | {np.mean(right):+.3f} | {np.mean(wrong):+.3f} | {np.mean(orders):.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--max-groups", type=int, default=100)
    options = parser.parse_args()
    config = load_config([options.run_dir / "config.yaml"], check_devices=False)
    paths = sorted((options.run_dir / "rollouts").glob("*.jsonl"))
    groups = with_beliefs(config, paths=paths, max_groups=options.max_groups)
    num_mixed = sum(len({is_right(group, index) for index in range(len(group.terms))}) == 2 for group in groups)
    print(f"{len(groups)} groups, {num_mixed} of them with right and wrong completions\n")
    print("| credit | right | wrong | auc |\n|---|---|---|---|")
    for name, credit in settings().items():
        print_row(name, groups=groups, credit=credit)


if __name__ == "__main__":
    main()
