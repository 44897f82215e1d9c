"""Held-out groups come in order, a few at a time, and survive their workers, with fakes in place of the actors."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
from ray.exceptions import RayActorError

from system.errors import first_error
from system.records import CompletionGroup, Prompt, Sampling, ScoredGroup
from system.reports.stage_display import StageDisplay
from system.runtime.group_scoring import GroupScoring
from system.runtime.held_out_groups import answer_prompts
from system.runtime.pools import Pools
from system.runtime.rollout_pool import RolloutPool
from system.runtime.worker_pool import PoolExhaustedError

SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, num_completions=4, seed=0)
PROMPTS = [
    Prompt(prompt_id=f"p{index}", token_ids=np.array([1], np.int32), text="", reference_answer="", task="")
    for index in range(8)
]


@dataclass
class Remote:
    """Looks like a Ray method: `.remote(...)` gives an awaitable."""

    call: Callable[..., Awaitable[object]]

    def remote(self, *arguments: object) -> Awaitable[object]:
        return self.call(*arguments)


@dataclass
class FakeRollout:
    """Later groups are done sooner; dies at its call number `dies_at`."""

    dies_at: int | None = None
    calls: list[int] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0

    @property
    def start(self) -> Remote:
        async def call() -> int:
            return 1

        return Remote(call)

    @property
    def generate(self) -> Remote:
        async def call(prompt: Prompt, group_id: int, sampling: Sampling) -> CompletionGroup:
            self.calls.append(group_id)
            self.num_running += 1
            self.most_running = max(self.most_running, self.num_running)
            if len(self.calls) == self.dies_at:
                raise RayActorError
            await asyncio.sleep(0.02 * (8 - group_id))
            self.num_running -= 1
            return CompletionGroup(group_id=group_id, prompt=prompt, completions=())

        return Remote(call)


class FakeScoring:
    """In place of all scorers."""

    async def score(self, group: CompletionGroup) -> ScoredGroup:
        return ScoredGroup(group_id=group.group_id, prompt=group.prompt, completions=(), rewards=())


def answer(*workers: FakeRollout, num_sequences: int = 16, max_restarts: int = 1) -> tuple[list[int], str]:
    """The groups in the order in which they were handed over, and what was shown; one worker starts."""
    handed_over: list[int] = []
    stream = io.StringIO()

    async def scenario() -> None:
        waiting = list(workers)
        pool = RolloutPool(
            create_actor=lambda name: waiting.pop(0),
            start_seconds=1.0,
            group_seconds=5.0,
            max_restarts=max_restarts,
            receives_weights=False,
            kill_actor=lambda actor: None,
        )
        await pool.start_worker()
        await answer_prompts(
            PROMPTS,
            pools=cast(Pools, _OnlyRollouts(pool)),
            scoring=cast(GroupScoring, FakeScoring()),
            sampling=SAMPLING,
            num_sequences=num_sequences,
            on_group=lambda group: handed_over.append(group.group_id),
            progress=StageDisplay(stream=stream, seconds_between_lines=0),
        )

    asyncio.run(asyncio.wait_for(scenario(), timeout=20))
    return handed_over, stream.getvalue()


@dataclass
class _OnlyRollouts:
    rollouts: RolloutPool
    scoring: None = None


def test_groups_are_handed_over_in_the_order_of_the_prompts_a_bounded_number_at_a_time() -> None:
    worker = FakeRollout()
    handed_over, shown = answer(worker, num_sequences=16)
    assert handed_over == list(range(8))
    assert worker.most_running == 4  # 16 sequences are 4 groups of 4
    assert "sampling and scoring: 8/8 problems" in shown.splitlines()[-1]


def test_a_worker_that_dies_is_replaced_and_its_groups_are_generated_again() -> None:
    second = FakeRollout()
    handed_over, _ = answer(FakeRollout(dies_at=3), second)
    assert handed_over == list(range(8))
    assert {0, 1, 2} <= set(second.calls)


def test_too_many_deaths_end_the_work() -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        answer(FakeRollout(dies_at=1), FakeRollout(dies_at=1), max_restarts=1)
    assert isinstance(first_error(raised.value), PoolExhaustedError)


def test_one_group_may_be_larger_than_the_bound() -> None:
    worker = FakeRollout()
    assert answer(worker, num_sequences=1)[0] == list(range(8))
    assert worker.most_running == 1
