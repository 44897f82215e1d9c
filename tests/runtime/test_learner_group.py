"""Which end of a learner rank is noticed how."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from system.config.load import load_config
from system.errors import DeadlineError, LearnerDiedError, NotFiniteError
from system.runtime.deadlines import wait_observer
from system.runtime.learner_group import LearnerGroup
from system.runtime.open_waits import OpenWaits
from tests.fakes import FakeActor
from tests.virtual_time import run_in_virtual_time

CONFIG = load_config([Path(__file__).parents[2] / "configs" / "demo.yaml"], ["learner.heartbeat_timeout_seconds=20"])


@dataclass(eq=False)
class FakeRank(FakeActor):
    """Takes 30 s to publish. `error`: what its collective raises when a peer is gone."""

    poll_seconds: float = 0.5
    error: BaseException | None = None

    async def on_is_alive(self) -> bool:
        return True

    async def on_publish(self) -> str:
        await asyncio.sleep(5.0)
        if self.error is not None:
            raise self.error
        await asyncio.sleep(25.0)
        return "manifest"


def make_group(*ranks: FakeRank) -> LearnerGroup:
    return LearnerGroup(
        actors=ranks,
        config=CONFIG.learner,
        weight_sync=CONFIG.weight_sync,
        scorer=CONFIG.scorer,
        canary_token_ids=[1, 2],
    )


def broken_collective() -> BaseException:
    return RayTaskError("publish", "Traceback ...", RuntimeError("Connection closed by peer"))


async def seconds_until_lost(group: LearnerGroup, *, fault: FakeRank, is_hung: bool) -> tuple[float, str]:
    watching = asyncio.ensure_future(group.watch())
    await asyncio.sleep(10.0)
    assert not watching.done()
    fault.is_hung, fault.is_dead = is_hung, not is_hung
    start = asyncio.get_running_loop().time()
    with pytest.raises(LearnerDiedError) as raised:
        await watching
    return asyncio.get_running_loop().time() - start, str(raised.value)


def test_a_death_between_two_steps_is_noticed_within_a_second_and_a_hang_by_its_missed_ping() -> None:
    ranks = [FakeRank(), FakeRank()]
    seconds, message = run_in_virtual_time(seconds_until_lost(make_group(*ranks), fault=ranks[1], is_hung=False))
    assert (seconds <= 1.0, message.partition(" (")[0]) == (True, "learner rank 1 died during 'answer a ping'")
    ranks = [FakeRank(), FakeRank()]
    seconds, message = run_in_virtual_time(seconds_until_lost(make_group(*ranks), fault=ranks[0], is_hung=True))
    assert 19.0 <= seconds <= 21.0
    assert message == "learner rank 0 did not finish 'answer a ping' within 20 s"


def test_the_error_of_a_peer_whose_collective_broke_is_told_as_the_death_that_broke_it() -> None:
    group = make_group(FakeRank(error=broken_collective()), dead := FakeRank())

    async def publish() -> None:
        asyncio.get_running_loop().call_later(4.0, setattr, dead, "is_dead", True)
        await group.publish()

    with pytest.raises(LearnerDiedError, match="learner rank 1 died"):
        run_in_virtual_time(publish())


def test_an_error_of_a_rank_while_all_are_alive_is_raised_as_it_is() -> None:
    with pytest.raises(RayTaskError):
        run_in_virtual_time(make_group(FakeRank(error=broken_collective()), FakeRank()).publish())
    with pytest.raises(NotFiniteError):
        run_in_virtual_time(make_group(FakeRank(error=NotFiniteError("tensor")), FakeRank()).publish())
    late = DeadlineError("receiver 3", what="join", seconds=5.0)
    with pytest.raises(DeadlineError, match="receiver 3"):
        run_in_virtual_time(make_group(FakeRank(error=late), FakeRank()).publish())


def test_a_rank_that_misses_the_deadline_of_a_call_counts_as_dead() -> None:
    with pytest.raises(LearnerDiedError, match=r"learner rank 1 did not finish 'publish' within 120 s"):
        run_in_virtual_time(make_group(FakeRank(), FakeRank(is_hung=True)).publish())


def test_answered_pings_are_no_progress_of_the_run_and_a_missed_one_is_told_before_the_rank_is_given_up() -> None:
    late: list[str] = []

    async def note(names: Sequence[str], what: str, seconds: float) -> None:
        late.extend(names)

    async def watched() -> int:
        waits = OpenWaits(before_giving_up=note)
        wait_observer.set(waits)
        await seconds_until_lost(make_group(FakeRank(), hung := FakeRank()), fault=hung, is_hung=True)
        return waits.num_ended(None)

    assert (run_in_virtual_time(watched()), late) == (0, ["learner rank 1"])
