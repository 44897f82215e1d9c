"""Busy shares and latencies of a pool, by hand and over fakes in virtual time."""

import asyncio
from typing import Any, cast

import pytest

from system.runtime.pool_member import PoolMember, WorkerState
from system.runtime.pool_usage import PoolUsage, percentile
from tests.fakes import FakeActor, make_pool, serve_all
from tests.virtual_time import run_in_virtual_time


def member(state: WorkerState, *, num_calls: int = 0, load: int = 0) -> PoolMember:
    return PoolMember(name="w", actor=None, pool=cast(Any, None), state=state, num_calls=num_calls, load=load)


def test_busy_and_load_are_shares_of_the_seconds_that_workers_served() -> None:
    time = 10.0
    usage = PoolUsage(max_load=4, clock=lambda: time)
    usage.note([member(WorkerState.SERVING, num_calls=2, load=3), member(WorkerState.STARTING)])
    time = 12.0  # one worker serves, busy, for 2 s
    usage.note([member(WorkerState.SERVING), member(WorkerState.SERVING, num_calls=1, load=1)])
    time = 15.0  # two serve and one is busy, for 3 s
    use = usage.take()
    assert use.busy_fraction == pytest.approx((2 + 3) / (2 + 6))
    assert use.load_fraction == pytest.approx((2 * 3 + 3 * 1) / (8 * 4))
    assert use.call_p50_seconds is None
    usage.note([])
    time = 99.0
    assert usage.take().busy_fraction is None


def test_a_worker_that_drains_counts_until_its_last_call() -> None:
    time = 0.0
    usage = PoolUsage(max_load=None, clock=lambda: time)
    usage.note([member(WorkerState.DRAINING, num_calls=1, load=1), member(WorkerState.SERVING)])
    time = 1.0
    usage.note([member(WorkerState.DRAINING), member(WorkerState.SERVING)])
    time = 3.0
    use = usage.take()
    assert use.busy_fraction == pytest.approx(1 / (2 + 2))
    assert use.load_fraction is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2.0), (0.99, 4.0), (0.25, 1.0), (1.0, 4.0)])
def test_percentile_is_a_value_that_occurred(share: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], share) == expected


class Sleeper(FakeActor):
    async def on_work(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds


def test_a_pool_keeps_its_usage() -> None:
    async def work() -> None:
        pool = make_pool([Sleeper(), Sleeper()], num_workers=2, max_load=1)
        await serve_all(pool)
        pool.usage.take()
        await asyncio.gather(*(pool.call("work", seconds, what="work") for seconds in (4.0, 3.0, 2.0)))
        await asyncio.sleep(5.0)
        use = pool.usage.take()
        assert use.busy_fraction == pytest.approx(9 / 20)
        assert use.load_fraction == pytest.approx(9 / 20)
        assert use.call_p50_seconds == pytest.approx(4.0)
        assert use.call_p99_seconds == pytest.approx(5.0)  # 3 s in the queue, 2 s of work
        assert pool.usage.take().call_p99_seconds is None

    run_in_virtual_time(work())
