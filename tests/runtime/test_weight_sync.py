"""The order of a sync and what it refuses, with fakes that record events. The real transfer: tests/actors."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from ray.exceptions import RayActorError

from system.config.schema import WeightSyncConfig
from system.errors import WeightSyncError
from system.records import FloatArray, ReceiverStatus, WeightGroupSpec, WeightsManifest
from system.runtime.weight_sync import WeightSync, canary_difference
from system.runtime.worker_pool import PoolSettings, WorkerPool, WorkerState

MANIFEST = WeightsManifest(
    policy_version=3, names=("w",), shapes=((2,),), dtypes=("float32",), num_bytes=8, digest="d3"
)
CANARY = np.array([-1.0, -2.0], np.float32)


@dataclass
class Remote:
    """Looks like a Ray method: `.remote(...)` gives an awaitable."""

    call: Callable[..., Awaitable[object]]

    def remote(self, *arguments: object, **named: object) -> Awaitable[object]:
        return self.call(*arguments, **named)


@dataclass
class FakeReceiver:
    name: str
    events: list[str]
    digest: str = "d3"
    version: int = 3
    canary: FloatArray = field(default_factory=lambda: CANARY.copy())
    dies_at: str = ""

    def __getattr__(self, method: str) -> Remote:
        async def call(*arguments: object) -> object:
            self.events.append(f"{self.name}.{method}")
            if method == self.dies_at:
                raise RayActorError
            if method == "receive_weights":
                return ReceiverStatus(receiver=self.name, policy_version=self.version, digest=self.digest, seconds=0.1)
            return {"start": 1, "canary_logprobs": self.canary}.get(method)

        return Remote(call)


@dataclass
class FakeLearnerGroup:
    events: list[str]
    num_opened: int = 0

    async def rendezvous(self) -> tuple[str, int]:
        return "localhost", 1234

    async def gather_weights(self) -> WeightsManifest:
        self.events.append("gather")
        return MANIFEST

    async def open_weight_group(self, spec: WeightGroupSpec) -> None:
        self.events.append(f"open world={spec.world_size}")

    async def send_weights(self, manifest: WeightsManifest) -> None:
        self.events.append("send")

    async def canary_logprobs(self, token_ids: list[int]) -> FloatArray:
        self.events.append("canary")
        return CANARY


async def make_sync(receivers: list[FakeReceiver], events: list[str]) -> tuple[WeightSync, WorkerPool]:
    waiting = list(receivers)
    settings = PoolSettings(
        kind="rollout worker",
        section="rollout",
        num_workers=len(receivers),
        start_seconds=1.0,
        call_seconds=1.0,
        max_restarts=3,
    )
    pool = WorkerPool(
        settings,
        create_actor=lambda name: waiting.pop(0),
        kill_actor=lambda actor: events.append(f"kill {actor.name}"),
    )
    await pool.start()
    events.clear()
    sync = WeightSync(
        learner_group=FakeLearnerGroup(events),  # type: ignore[arg-type]
        pools=[pool],
        config=WeightSyncConfig(timeout_seconds=1.0),
        canary_token_ids=[1, 2, 3],
    )
    return sync, pool


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), timeout=10))


def test_gather_comes_before_join_send_receive_and_canary() -> None:
    events: list[str] = []

    async def scenario() -> None:
        sync, pool = await make_sync([FakeReceiver("a", events), FakeReceiver("b", events)], events)

        report = await sync.synchronise()

        assert report.policy_version == 3
        assert report.num_receivers == 2
        assert events[0] == "gather"
        assert events[1] == "open world=3"
        assert set(events[2:4]) == {"a.join_weight_group", "b.join_weight_group"}
        assert set(events[4:7]) == {"send", "a.receive_weights", "b.receive_weights"}
        assert set(events[7:]) == {"canary", "a.canary_logprobs", "b.canary_logprobs"}
        assert pool.num_serving == 2

    run(scenario)


def test_group_is_opened_once_while_nobody_comes_or_goes() -> None:
    events: list[str] = []

    async def scenario() -> None:
        sync, _ = await make_sync([FakeReceiver("a", events)], events)
        await sync.synchronise()
        await sync.synchronise()

        assert events.count("open world=2") == 1
        assert events.count("send") == 2

    run(scenario)


@pytest.mark.parametrize(("digest", "version"), [("other", 3), ("d3", 2)])
def test_stale_receiver_is_refused_and_taken_out(digest: str, version: int) -> None:
    events: list[str] = []

    async def scenario() -> None:
        stale = FakeReceiver("stale", events, digest=digest, version=version)
        sync, pool = await make_sync([stale, FakeReceiver("good", events)], events)

        await sync.synchronise()

        assert [member.actor.name for member in pool.members] == ["good"]
        assert pool.num_serving == 1
        assert "kill stale" in events
        assert "stale.canary_logprobs" not in events

    run(scenario)


def test_receiver_that_dies_in_the_broadcast_does_not_keep_the_others_from_syncing() -> None:
    events: list[str] = []

    async def scenario() -> None:
        dying = FakeReceiver("dying", events, dies_at="receive_weights")
        sync, pool = await make_sync([dying, FakeReceiver("good", events)], events)

        report = await sync.synchronise()

        assert report.num_receivers == 1
        assert "open world=3" in events
        assert "open world=2" in events
        assert pool.num_serving == 1
        assert pool.num_removed == 1

    run(scenario)


def test_canary_that_differs_names_the_receiver() -> None:
    events: list[str] = []

    async def scenario() -> None:
        wrong = FakeReceiver("x", events, canary=CANARY + np.float32(0.5))
        sync, pool = await make_sync([FakeReceiver("a", events), wrong], events)

        with pytest.raises(WeightSyncError, match=r"rollout worker 1 .* differ .* 0\.5 nats"):
            await sync.synchronise()
        assert all(member.state is WorkerState.JOINING for member in pool.members)

    run(scenario)


def test_canary_that_is_not_a_number_is_infinitely_wrong() -> None:
    assert canary_difference(CANARY, np.array([np.nan, -2.0], np.float32)) == float("inf")
    assert canary_difference(CANARY, CANARY - np.float32(0.25)) == 0.25
