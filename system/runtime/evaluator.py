"""Held-out accuracy inside a run: the rollout workers answer, the reward workers judge.

Called by the controller between updates and by `credence evaluate`. Evaluation groups have seeds of their
own, the same at every evaluation, and never appear in the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from system.algorithms.rewards import is_right
from system.config.run_schema import EvaluationConfig
from system.numerics.pass_at_k import mean_with_interval, pass_at_k
from system.numerics.text_statistics import count_reflection_words
from system.records import Metric, Prompt, Sampling, ScoredGroup
from system.runtime.sampler import Generator, Score, answer_prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Mean over problems with its 95 % interval, 0-1."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationResult:
    policy_version: int
    num_problems: int
    num_completions: int  # sampled, for each problem
    sampled: Accuracy
    greedy: Accuracy
    pass_at: dict[int, float]  # k -> unbiased estimate
    length_mean_tokens: float
    tokens_per_solved: float | None  # None when nothing was solved
    reflection_words_mean: float
    truncated_fraction: float
    num_invalid: int
    groups: tuple[ScoredGroup, ...] = field(repr=False)

    def metrics(self) -> tuple[Metric, ...]:
        values = {
            "eval/accuracy_sampled": self.sampled.mean,
            "eval/accuracy_sampled_low": self.sampled.low,
            "eval/accuracy_sampled_high": self.sampled.high,
            "eval/accuracy_greedy": self.greedy.mean,
            "eval/accuracy_greedy_low": self.greedy.low,
            "eval/accuracy_greedy_high": self.greedy.high,
            "eval/num_problems": self.num_problems,
            "eval/num_completions": self.num_completions,
            "eval/length_mean_tokens": self.length_mean_tokens,
            "eval/reflection_words_mean": self.reflection_words_mean,
            "eval/truncated_fraction": self.truncated_fraction,
            "eval/num_invalid": self.num_invalid,
            "eval/policy_version": self.policy_version,
        } | {f"eval/pass_at_{k}": value for k, value in self.pass_at.items()}
        if self.tokens_per_solved is not None:
            values["eval/tokens_per_solved"] = self.tokens_per_solved
        return tuple(Metric(name=name, value=float(value)) for name, value in values.items())


class Evaluator:
    """Asks held-out prompts greedily (once) and sampled (several times each)."""

    def __init__(
        self,
        *,
        generator: Generator,
        verify: Score,
        prompts: Sequence[Prompt],
        config: EvaluationConfig,
        max_tokens: int,
        seed: int,
    ) -> None:
        self._generator = generator
        self._verify = verify
        self._prompts = tuple(prompts)
        self._config = config
        self._max_tokens = max_tokens
        self._seed = seed

    async def evaluate(self, *, policy_version: int, is_final: bool) -> EvaluationResult:
        """The full evaluation (start and end of a run) or the periodic one, which is smaller."""
        config = self._config
        num_problems = config.num_problems_final if is_final else config.num_problems
        num_completions = config.completions_per_problem_final if is_final else config.completions_per_problem
        prompts = self._prompts[:num_problems]
        greedy, sampled = await asyncio.gather(
            self._answer_all(prompts, temperature=0.0, num_completions=1),
            self._answer_all(prompts, temperature=config.temperature, num_completions=num_completions),
        )
        return await asyncio.to_thread(summarise, greedy, sampled, policy_version=policy_version)

    async def _answer_all(
        self, prompts: Sequence[Prompt], *, temperature: float, num_completions: int
    ) -> list[ScoredGroup]:
        sampling = Sampling(
            temperature=temperature,
            top_p=1.0,
            top_k=0,
            max_tokens=self._max_tokens,
            num_completions=num_completions,
            seed=self._seed,
        )
        groups: list[ScoredGroup] = []
        await answer_prompts(
            prompts, generator=self._generator, score=self._verify, sampling=sampling, on_group=groups.append
        )
        return groups


def summarise(
    greedy: Sequence[ScoredGroup], sampled: Sequence[ScoredGroup], *, policy_version: int
) -> EvaluationResult:
    """Accuracies over problems; an invalid verdict counts as not right, and is counted."""
    for scored in (*greedy, *sampled):
        for trajectory in scored.group.trajectories:
            versions = set(trajectory.sampled_policy_versions.tolist())
            assert versions <= {policy_version}, f"evaluation of version {policy_version} was answered by {versions}"
    right = [[is_right(scored, index) for index in range(len(scored.terms))] for scored in sampled]
    num_completions = len(right[0])
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if 1 < k <= num_completions]
    trajectories = [trajectory for scored in sampled for trajectory in scored.group.trajectories]
    num_tokens, num_right = sum(trajectory.num_sampled for trajectory in trajectories), sum(map(sum, right))
    return EvaluationResult(
        policy_version=policy_version,
        num_problems=len(sampled),
        num_completions=num_completions,
        sampled=Accuracy(**mean_with_interval([float(np.mean(row)) for row in right])),
        greedy=Accuracy(**mean_with_interval([float(is_right(scored, 0)) for scored in greedy])),
        pass_at={
            k: float(np.mean([pass_at_k(num_samples=num_completions, num_correct=sum(row), k=k) for row in right]))
            for k in ks
        },
        length_mean_tokens=num_tokens / len(trajectories),
        tokens_per_solved=num_tokens / num_right if num_right else None,
        reflection_words_mean=float(np.mean([count_reflection_words(each.text) for each in trajectories])),
        truncated_fraction=float(np.mean([each.finish_reason == "length" for each in trajectories])),
        num_invalid=sum(term.status == "invalid" for scored in sampled for row in scored.terms for term in row),
        groups=tuple(sampled),
    )
