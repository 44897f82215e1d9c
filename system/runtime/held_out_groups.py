"""Completions of held-out problems outside of a run, with the workers of a run but without a learner.

    sample_groups   prompts ──> rollout workers ──> rules ∥ replicas ──> on_group, in the order of the prompts
    score_groups    completions that are there already ──> rules ∥ replicas ──> on_group, in their order

| task         | waits for                                | who unblocks it                       |
|--------------|------------------------------------------|---------------------------------------|
| sample       | room in the engines, a worker, a scorer  | groups that are done, replace_loop    |
| replace_loop | a lost worker                            | whoever notices the death             |

All workers serve model.path as it is. Called by system/commands/completion_source.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from system.config.schema import Config
from system.records import CompletionGroup, Prompt, Sampling, ScoredGroup
from system.reports.stage_display import StageDisplay
from system.runtime.group_scoring import GroupScoring
from system.runtime.placement import Placement
from system.runtime.pools import Pools, make_pools
from system.runtime.rollout_pool import RolloutPool
from system.runtime.worker_pool import WorkerDiedError, WorkerPool

_log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 5.0
_FILLINGS = 2  # sequences given to an engine, as a multiple of those it decodes at once: it never waits for us

OnGroup = Callable[[ScoredGroup], None]


async def sample_groups(config: Config, *, prompts: Sequence[Prompt], num_completions: int, on_group: OnGroup) -> None:
    """Draw and score `num_completions` for each prompt at evaluation.temperature; group i has seed (run.seed, i).

    Raises what the pools raise: DeadlineError, WorkerDiedError at the start, PoolExhaustedError.
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
    progress = StageDisplay()
    try:
        progress.begin("starting rollout workers, scoring replicas and reward workers")
        await pools.start(config)
        await answer_prompts(
            prompts,
            pools=pools,
            scoring=pools.group_scoring(config),
            sampling=sampling,
            num_sequences=_FILLINGS * config.rollout.max_sequences * config.rollout.num_workers,
            on_group=on_group,
            progress=progress,
        )
    finally:
        progress.end()
        await pools.shutdown(seconds=_SHUTDOWN_SECONDS)


async def answer_prompts(
    prompts: Sequence[Prompt],
    *,
    pools: Pools,
    scoring: GroupScoring,
    sampling: Sampling,
    num_sequences: int,
    on_group: OnGroup,
    progress: StageDisplay,
) -> None:
    """Sample and score one group for each prompt on pools that serve, at most about `num_sequences` at a time.

    A bound, because the deadline of a group runs from the moment at which an engine gets it.
    """
    room = asyncio.Semaphore(max(1, num_sequences // sampling.num_completions))
    progress.begin("sampling and scoring", total=len(prompts))

    async def answer(prompt: Prompt, *, group_id: int) -> ScoredGroup:
        async with room:
            group = await _generate(pools.rollouts, prompt, group_id=group_id, sampling=sampling)
        return await scoring.score(group)

    answers = [answer(prompt, group_id=index) for index, prompt in enumerate(prompts)]
    await _finish_in_order(answers, on_group=on_group, progress=progress, pools=_weight_pools(pools))


async def score_groups(config: Config, *, groups: Sequence[ScoredGroup], on_group: OnGroup) -> None:
    """Score completions anew with all scorers; no rollout worker is started. Raises as `sample_groups`."""
    pools = make_pools(config, placement=Placement(config=config), has_learner=False)
    assert pools.scoring is not None, "a configuration of this command has scoring replicas"
    progress = StageDisplay()
    try:
        progress.begin("starting scoring replicas and reward workers")
        async with asyncio.TaskGroup() as starts:
            starts.create_task(pools.rewards.start())
            for _ in range(config.scorer.num_workers):
                starts.create_task(pools.scoring.start_worker())
        scoring = pools.group_scoring(config)
        progress.begin("scoring", total=len(groups))
        scores = [
            scoring.score(CompletionGroup(group_id=group.group_id, prompt=group.prompt, completions=group.completions))
            for group in groups
        ]
        await _finish_in_order(scores, on_group=on_group, progress=progress, pools=_weight_pools(pools))
    finally:
        progress.end()
        await pools.shutdown(seconds=_SHUTDOWN_SECONDS)


def _weight_pools(pools: Pools) -> list[WorkerPool]:
    """The pools with workers that have started; reward workers are replaced by their own pool."""
    return [pool for pool in (pools.rollouts, pools.scoring) if pool is not None and pool.members]


async def _generate(pool: RolloutPool, prompt: Prompt, *, group_id: int, sampling: Sampling) -> CompletionGroup:
    while True:
        try:
            return await pool.generate(prompt, group_id=group_id, sampling=sampling)
        except WorkerDiedError as error:
            _log.warning("%s; group %d is generated again", error, group_id)


async def _finish_in_order(
    work: Sequence[Coroutine[Any, Any, ScoredGroup]],
    *,
    on_group: OnGroup,
    progress: StageDisplay,
    pools: Sequence[WorkerPool],
) -> None:
    """Run all of `work` at once and hand its groups over in order; meanwhile replace workers that die."""
    async with asyncio.TaskGroup() as tasks:
        replace_loops = [tasks.create_task(pool.replace_loop(len(pool.members))) for pool in pools]
        groups = [tasks.create_task(each) for each in work]
        for group in groups:
            group.add_done_callback(lambda done: None if done.cancelled() or done.exception() else progress.advance())
        for group in groups:
            on_group(await group)
        for loop in replace_loops:
            loop.cancel()
