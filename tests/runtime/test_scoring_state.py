"""Replicas against engines: calibrated at the first measurement, a warning when that is left."""

import asyncio
import logging
from dataclasses import dataclass, field

import pytest

from system.runtime.scoring_state import ReplicaComparison
from tests.fakes import FakeActor, make_pool, serve_all


@dataclass(eq=False)
class Replica(FakeActor):
    differences: list[float | None] = field(default_factory=list)

    async def on_take_logprob_difference(self) -> float | None:
        return self.differences.pop(0)


def measure(*replicas: Replica, times: int) -> list[float | None]:
    async def scenario() -> list[float | None]:
        pool = make_pool(list(replicas), kind="scoring replica", num_workers=len(replicas))
        await serve_all(pool)
        comparison = ReplicaComparison(pool, precisions=("float32", "float32"))
        return [await comparison.measure() for _ in range(times)]

    return asyncio.run(scenario())


def test_the_first_difference_sets_what_is_allowed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        values = measure(Replica(differences=[None, 5e-5, 3.9e-4, 4.1e-4]), times=4)
    assert values == [None, 5e-5, 3.9e-4, 4.1e-4]
    assert len(caplog.records) == 1  # 8 x 5e-5 = 4e-4
    assert "differ by 0.00041 nats" in caplog.text


def test_the_largest_of_all_replicas_counts() -> None:
    values = measure(Replica(differences=[2e-6, 1e-6]), Replica(differences=[3e-6, None]), times=2)
    assert values == [3e-6, 1e-6]


def test_a_replica_that_died_is_taken_out_and_the_others_count() -> None:
    async def scenario() -> None:
        first, second = Replica(differences=[1e-6]), Replica(differences=[2e-6])
        pool = make_pool([first, second], kind="scoring replica", num_workers=2)
        await serve_all(pool)
        second.is_dead = True
        assert await ReplicaComparison(pool, precisions=("float32", "bfloat16")).measure() == 1e-6
        assert [member.actor for member in pool.members] == [first]

    asyncio.run(scenario())
