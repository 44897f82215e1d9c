"""Completions of given prompts, sampled and scored, in their order. Used by the evaluator and held_out_groups.py.

All prompts are submitted at once: the pools bound what a worker holds, and a group's deadline begins when one gets it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from system.records import Prompt, Sampling, ScoredGroup, TrajectoryGroup
from system.runtime.worker_failures import PoisonedCallError

_log = logging.getLogger(__name__)

OnGroup = Callable[[ScoredGroup], None]
Score = Callable[[TrajectoryGroup], Awaitable[ScoredGroup]]


class Generator(Protocol):
    """The part of the pools that is needed here."""

    async def generate(self, prompt: Prompt, *, group_id: int, sampling: Sampling) -> TrajectoryGroup: ...


async def answer_prompts(
    prompts: Sequence[Prompt],
    *,
    generator: Generator,
    score: Score,
    sampling: Sampling,
    on_group: OnGroup,
    on_done: Callable[[], None] = lambda: None,
) -> None:
    """Group i answers prompt i with seed (sampling.seed, i); `on_group` gets the groups in order.

    `on_done` is called as each ends. A group that every worker died of is left out with a warning.
    Raises PoolExhaustedError.
    """

    async def answer(group_id: int, prompt: Prompt) -> ScoredGroup | None:
        try:
            return await score(await generator.generate(prompt, group_id=group_id, sampling=sampling))
        except PoisonedCallError as error:
            _log.warning("prompt %s is left out: %s", prompt.prompt_id, error)
            return None
        finally:
            on_done()

    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(answer(group_id, prompt)) for group_id, prompt in enumerate(prompts)]
        for each in answers:
            group = await each
            if group is not None:
                on_group(group)
