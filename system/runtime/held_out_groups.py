"""Completions of held-out problems outside of a run, with the workers of a run but without a learner.

    sample_groups   prompts ──> rollout workers ──> rules ∥ replicas ──> on_group, in the order of the prompts
    score_groups    completions that are there already ──> rules ∥ replicas ──> on_group, in their order

All workers serve model.path as it is. Called by system/commands/completion_source.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from system.config.schema import Config
from system.records import Prompt, Sampling, ScoredGroup
from system.reports.stage_display import StageDisplay
from system.runtime.placement import Placement
from system.runtime.pools import Pools, make_pools
from system.runtime.sampler import OnGroup, answer_prompts

_SHUTDOWN_SECONDS = 5.0


async def sample_groups(config: Config, *, prompts: Sequence[Prompt], num_completions: int, on_group: OnGroup) -> None:
    """Draw and score `num_completions` for each prompt at evaluation.temperature; group i has seed (run.seed, i).

    Raises WorkerDiedError at the start, PoolExhaustedError.
    """
    sampling = Sampling(
        temperature=config.evaluation.temperature,
        top_p=1.0,
        top_k=0,
        max_tokens=config.rollout.max_completion_tokens,
        num_completions=num_completions,
        seed=config.run.seed,
    )
    pools = make_pools(config, placement=Placement(config=config), has_learner=False)
    async with _running(pools, starts="rollout workers, scoring replicas and reward workers") as progress:
        progress.begin("sampling and scoring", total=len(prompts))
        await answer_prompts(
            prompts,
            generator=pools,
            score=pools.group_scoring(config).score,
            sampling=sampling,
            on_group=on_group,
            on_done=progress.advance,
        )


async def score_groups(config: Config, *, groups: Sequence[ScoredGroup], on_group: OnGroup) -> None:
    """Score completions anew with all scorers; no rollout worker is started. Raises as `sample_groups`."""
    pools = make_pools(config, placement=Placement(config=config), has_learner=False)
    assert pools.scoring is not None, "a configuration of this command has scoring replicas"
    pools.rollouts.resize(0)
    scoring = pools.group_scoring(config)
    async with _running(pools, starts="scoring replicas and reward workers") as progress:
        progress.begin("scoring", total=len(groups))

        async def score(group: ScoredGroup) -> ScoredGroup:
            scored = await scoring.score(group.group)
            progress.advance()
            return scored

        async with asyncio.TaskGroup() as tasks:
            for each in [tasks.create_task(score(group)) for group in groups]:
                on_group(await each)


@asynccontextmanager
async def _running(pools: Pools, *, starts: str) -> AsyncIterator[StageDisplay]:
    """The pools with all their workers, kept alive meanwhile and taken down afterwards."""
    progress = StageDisplay()
    try:
        progress.begin(f"starting {starts}")
        await pools.start()
        async with pools.supervised():
            yield progress
    finally:
        progress.end()
        await pools.shutdown(seconds=_SHUTDOWN_SECONDS)
