"""Requests reach the pools through the mailbox and are done as a whole or refused; the status comes back."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from system.config.schema import Config
from system.runtime.control_loop import ControlLoop
from system.runtime.group_buffer import GroupBuffer
from system.runtime.parts import Outcome
from system.runtime.pools import Pools
from system.runtime.run_control import RunControl, ScaleAnswer, ScaleChange, ScaleRequest
from system.runtime.run_status import Progress, RunStatus
from tests.fakes import FakeReward, FakeRollout, Remote, make_pool, opened, serve_all
from tests.runtime.controller_fakes import make_config
from tests.runtime.test_worker_pool import admit, generate
from tests.virtual_time import run_in_virtual_time


class FakeMailbox:
    """The real mailbox behind handles like Ray's; a dead one fails every call, a hung one answers none."""

    def __init__(self) -> None:
        self.control = RunControl()
        self.is_dead = False
        self.is_hung = False

    def __getattr__(self, method: str) -> Remote:
        async def call(*arguments: Any) -> object:
            answer = await getattr(self.control, method)(*arguments)
            while self.is_hung:
                await asyncio.sleep(1.0)
            if self.is_dead:
                raise RayActorError
            return answer

        return Remote(call)


class Run:
    """Pools of a run whose controller has not begun, and the control of it."""

    def __init__(self, config: Config, *, num_actors: int = 8) -> None:
        self.rollouts = [opened(FakeRollout()) for _ in range(num_actors)]
        rewards = make_pool([opened(FakeReward()) for _ in range(num_actors)], kind="reward worker", section="reward")
        self.pools = Pools(
            rollouts=make_pool(list(self.rollouts), max_load=1, call_seconds=1e3), rewards=rewards, scoring=None
        )
        self.mailboxes: list[FakeMailbox] = []
        self.num_closed = 0
        self.control = ControlLoop(
            "demo", config=config, pools=self.pools, open_mailbox=self._open, close_mailbox=self._close
        )

    def _open(self) -> FakeMailbox:
        self.mailboxes.append(FakeMailbox())
        return self.mailboxes[-1]

    def _close(self) -> None:
        self.num_closed += 1

    async def during(self, scenario: Callable[["Run"], Any]) -> None:
        for pool in self.pools.all():
            await serve_all(pool)
        self.control.start()
        await asyncio.sleep(1.0)
        async with self.pools.supervised(admit):
            await scenario(self)
            await self.control.close()
        assert self.num_closed == 1

    async def scale(self, **workers: int) -> ScaleAnswer:
        return await self.mailboxes[-1].control.scale(ScaleRequest(workers=workers))

    async def status(self) -> RunStatus:
        await asyncio.sleep(2.0)
        status = await self.mailboxes[-1].control.status()
        assert status is not None
        return status


def play(scenario: Callable[[Run], Any], **keys: object) -> None:
    run_in_virtual_time(Run(make_config(**keys)).during(scenario))


def test_a_request_changes_the_pools_and_its_answer_says_how() -> None:
    async def scenario(run: Run) -> None:
        answer = await run.scale(rollout=3, reward=2)
        assert answer == ScaleAnswer(
            changes=(
                ScaleChange(section="rollout", kind="rollout worker", before=1, after=3),
                ScaleChange(section="reward", kind="reward worker", before=1, after=2),
            )
        )
        pools = {pool.section: pool for pool in (await run.status()).pools}
        assert [worker.state for worker in pools["rollout"].workers] == ["serving"] * 3
        assert (pools["reward"].desired, pools["reward"].num_serving) == (2, 2)
        await run.scale(rollout=1)
        assert (await run.status()).pools[0].num_serving == 1

    play(scenario)


@pytest.mark.parametrize(
    ("workers", "reason"),
    [
        ({"rollout": 0}, "rollout=0: a run needs at least 1 rollout worker"),
        ({"scorer": 2}, "this run has no scorer workers: no reward term and no algorithm needs"),
        ({"learner": 2}, "there are no learner workers: give one of rollout, reward, scorer"),
        ({"reward": 9}, "outside the bounds of autoscaling, reward.min_workers=1 and reward.max_workers=3"),
    ],
)
def test_a_request_that_cannot_be_done_as_a_whole_changes_nothing(workers: dict[str, int], reason: str) -> None:
    async def scenario(run: Run) -> None:
        answer = await run.scale(**{"rollout": 2} | workers)
        assert reason in str(answer.refusal)
        assert not answer.changes
        assert {pool.desired for pool in run.pools.all()} == {1}

    play(scenario, reward__min_workers=1, reward__max_workers=3)


def test_status_before_the_controller_has_begun_knows_the_workers() -> None:
    async def scenario(run: Run) -> None:
        status = await run.status()
        assert (status.run, status.phase, status.num_updates, status.queue) == ("demo", "start", 4, None)
        assert [pool.section for pool in status.pools] == ["rollout", "reward"]
        assert status.pools[0].workers[0].name == "rollout worker 0"

    play(scenario)


@pytest.mark.parametrize("fault", ["is_dead", "is_hung"])
def test_a_mailbox_that_is_lost_is_made_again(fault: str) -> None:
    async def scenario(run: Run) -> None:
        setattr(run.mailboxes[0], fault, True)
        while len(run.mailboxes) == 1:
            await asyncio.sleep(1.0)
        await asyncio.sleep(1.0)
        assert (await run.scale(rollout=2)).refusal is None
        assert run.pools.rollouts.desired == 2
        run.mailboxes[0].is_dead, run.mailboxes[0].is_hung = True, False

    play(scenario)


def test_autoscaling_follows_who_starves_and_who_idles() -> None:
    async def scenario(run: Run) -> None:
        outcome = Outcome(policy_version=3, completion_tokens=0, canary_max_abs_diff=0.0, phase="rollout")
        buffer = GroupBuffer(prompts_per_step=2, max_staleness=0, published_version=3)
        run.control.progress = Progress(outcome=outcome, buffer=buffer, admissions=())
        for actor in run.rollouts:
            actor.gate.clear()
        groups = [generate(run.pools.rollouts, group_id) for group_id in range(8)]
        await asyncio.sleep(35.0)
        assert run.pools.rollouts.desired == 2
        status = await run.status()
        assert (status.phase, status.policy_version, status.pools[0].num_calls_waiting) == ("rollout", 3, 6)
        assert status.queue is not None
        assert (status.queue.published_version, status.queue.oldest_lease_version) == (3, None)
        for actor in run.rollouts:
            actor.gate.set()
        await asyncio.gather(*groups)
        await asyncio.sleep(300.0)
        assert run.pools.rollouts.desired == 1

    play(scenario, rollout__min_workers=1, rollout__max_workers=2)
