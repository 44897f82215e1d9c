"""A learner, receivers and a pool that hold versions and bytes, so that a race between them shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch
from ray.exceptions import RayActorError

from system.config.schema import WeightSyncConfig
from system.errors import LearnerDiedError, WeightSyncError
from system.runtime.pool_member import PoolMember, PoolSettings, WorkerState
from system.runtime.weight_sync import WeightSync
from system.weights.canary import canary_difference
from system.weights.digest import checked_buckets, snapshot_digest
from system.weights.manifest import ReceiverStatus, WeightGroupSpec, WeightsManifest
from tests.fakes import Remote
from tests.weights.memory_store import MemoryStore

TIMEOUT_SECONDS = 10.0


class Collective:
    """One broadcast group: it works when all ranks take part, and breaks for all when it is called off."""

    def __init__(self, spec: WeightGroupSpec) -> None:
        self.spec = spec
        self.joined: set[int] = set()
        self.is_broken = False
        self.changed = asyncio.Event()
        self.sent: WeightsManifest | None = None

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def wait_until(self, condition: Callable[[], bool], *, what: str) -> None:
        deadline = asyncio.get_running_loop().time() + self.spec.timeout_seconds
        while not condition():
            left = deadline - asyncio.get_running_loop().time()
            if self.is_broken or left <= 0:
                raise WeightSyncError(f"{what} broke off")
            changed = self.changed
            try:
                await asyncio.wait_for(changed.wait(), left)
            except TimeoutError:  # not once more: what is left may be too little to move the clock
                raise WeightSyncError(f"{what} broke off") from None


class FakeLearnerGroup:
    """One weight that counts the steps; `step` takes time, and publishes what it ends with."""

    def __init__(self, store: MemoryStore, *, random: Random | None = None) -> None:
        self.store = store
        self.version = 0
        self.random = random or Random(0)
        self.collective: Collective | None = None
        self.is_dead = False
        self.events: list[str] = []

    @property
    def weight(self) -> torch.Tensor:
        return torch.tensor([float(self.version), 0.5])

    def publish(self) -> WeightsManifest:
        canary = np.array([-1.0, -float(self.version)], np.float32)
        return self.store.publish({"w": self.weight}, policy_version=self.version, canary_logprobs=canary)

    async def step(self, *, seconds: float = 0.0) -> WeightsManifest:
        await asyncio.sleep(seconds)
        self.version += 1
        return self.publish()

    async def require_alive(self) -> None:
        self._require_alive()

    async def rendezvous(self) -> tuple[str, int]:
        self._require_alive()
        return "127.0.0.1", 1

    async def open_weight_group(self, spec: WeightGroupSpec) -> None:
        self._require_alive()
        self.events.append(f"open world={spec.world_size}")
        group = self.collective = Collective(spec)
        COLLECTIVES[spec.group_name, spec.secret] = group
        await group.wait_until(lambda: len(group.joined) == spec.world_size - 1, what="join")

    async def call_off(self, spec: WeightGroupSpec, *, reason: str) -> None:
        self.events.append(f"call off: {reason}")
        group = COLLECTIVES.get((spec.group_name, spec.secret))
        if group is not None:
            group.is_broken = True
            group.notify()

    async def broadcast(self, manifest: WeightsManifest) -> None:
        self._require_alive()
        group = self.collective
        assert group is not None
        self.events.append(f"broadcast {manifest.policy_version}")
        group.sent = manifest
        group.notify()
        await asyncio.sleep(self.random.random())
        if group.is_broken:
            raise WeightSyncError("send broke off")

    def _require_alive(self) -> None:
        if self.is_dead:
            raise LearnerDiedError("learner rank 0 died")


COLLECTIVES: dict[tuple[str, str], Collective] = {}


class FakeReceiver:
    """Holds the tensors that it loaded last, and the version that it stamps on what it generates."""

    def __init__(self, name: str, *, store: MemoryStore, random: Random | None = None) -> None:
        self.name = name
        self.store = store
        self.random = random or Random(0)
        self.version = -1
        self.weight = torch.tensor([-1.0, 0.5])
        self.is_dead = False
        self.is_hung = False
        self.dies_at = ""  # a method
        self.canary_error = 0.0  # nats, from now on
        self.load_seconds = 1.0
        self.is_broken = False  # a broadcast broke off: it must not generate
        self.events: list[str] = []
        self._group: Collective | None = None

    def __getattr__(self, method: str) -> Remote:
        if method.startswith(("_", "on_")):
            raise AttributeError(method)

        async def call(*arguments: object) -> object:
            self.events.append(method)
            await self._pass_time()
            if method == self.dies_at:
                self.die()
            self._require_alive()
            answer = await getattr(self, f"on_{method}")(*arguments)
            await self._pass_time()
            self._require_alive()
            return answer

        return Remote(call)

    def die(self) -> None:
        """Its peers do not notice by themselves, as with NCCL, or while a group opens."""
        self.is_dead = True

    def generate(self) -> tuple[int, float]:
        """The version that its tokens say, and the weight that drew them."""
        assert not self.is_broken
        return self.version, float(self.weight[0])

    async def on_join_weight_group(self, spec: WeightGroupSpec, first_rank: int) -> None:
        while (spec.group_name, spec.secret) not in COLLECTIVES:
            await asyncio.sleep(0.01)
        group = self._group = COLLECTIVES[spec.group_name, spec.secret]
        group.joined.add(first_rank)
        group.notify()
        await group.wait_until(lambda: len(group.joined) == spec.world_size - 1, what="join")

    async def on_receive_broadcast(self, manifest: WeightsManifest) -> ReceiverStatus:
        group = self._group
        assert group is not None
        self.is_broken = True
        await group.wait_until(lambda: group.sent is manifest, what="receive")
        await asyncio.sleep(self.random.random())
        if group.is_broken:
            raise WeightSyncError("receive broke off")
        return self._load(manifest)

    async def on_load_weights(self, manifest: WeightsManifest, timeout_seconds: float) -> ReceiverStatus:
        await asyncio.sleep(self.load_seconds * self.random.random())
        return self._load(manifest)

    def _load(self, manifest: WeightsManifest) -> ReceiverStatus:
        buffers = (torch.tensor(each) for each in self.store.fetch(manifest.references))
        for tensors in checked_buckets(buffers, manifest):
            self.weight = tensors[0][1].clone()
        self.version = manifest.policy_version
        self.is_broken = False
        held = MemoryStore().publish({"w": self.weight}, policy_version=self.version)
        canary = np.array([-1.0, -float(self.weight[0]) + self.canary_error], np.float32)
        difference = None
        if manifest.canary_logprobs is not None:
            difference = canary_difference(manifest.canary_logprobs, canary)
        return ReceiverStatus(
            receiver=self.name,
            policy_version=self.version,
            digest=snapshot_digest(held.slots),
            dtype="float32",
            canary_max_abs_diff=difference,
            seconds=0.0,
            pause_seconds=0.5,
            proved_fraction=1.0,
        )

    async def _pass_time(self) -> None:
        while self.is_hung and not self.is_dead:
            await asyncio.sleep(0.5)

    def _require_alive(self) -> None:
        if self.is_dead:
            raise RayActorError


@dataclass(eq=False)
class FakePool:
    """What weight_sync sees of a pool; `serve` looks whether the worker holds what it is said to hold."""

    kind: str = "rollout worker"
    is_exclusive: bool = False
    removed: list[str] = field(default_factory=list)
    everybody: list[PoolMember] = field(default_factory=list)

    @property
    def settings(self) -> PoolSettings:
        return PoolSettings(
            kind=self.kind,
            section="",
            num_workers=1,
            start_seconds=1.0,
            call_seconds=5.0,
            max_restarts=0,
            is_exclusive=self.is_exclusive,
        )

    @property
    def members(self) -> tuple[PoolMember, ...]:
        return tuple(each for each in self.everybody if each.state in (WorkerState.JOINING, WorkerState.SERVING))

    def add(self, receiver: FakeReceiver) -> PoolMember:
        name = f"{self.kind} {len(self.everybody)}"
        member = PoolMember(name=name, actor=receiver, pool=self, num_ranks=1)  # type: ignore[arg-type]
        member.state = WorkerState.JOINING
        self.everybody.append(member)
        return member

    def serve(self, member: PoolMember) -> None:
        assert member.state is not WorkerState.GONE
        member.state = WorkerState.SERVING

    def remove(self, member: PoolMember, *, reason: str) -> None:
        if member.state is WorkerState.GONE:
            return
        member.state = WorkerState.GONE
        member.actor.die()
        self.removed.append(f"{member.name}: {reason}")


@dataclass
class World:
    """A learner, pools and the sync between them."""

    store: MemoryStore
    learner: FakeLearnerGroup
    rollouts: FakePool
    scoring: FakePool
    sync: WeightSync
    random: Random

    def receiver(self, name: str) -> FakeReceiver:
        return FakeReceiver(name, store=self.store, random=self.random)

    def start(self, *names: str, pool: FakePool | None = None) -> list[FakeReceiver]:
        receivers = [self.receiver(name) for name in names]
        for receiver in receivers:
            (pool or self.rollouts).add(receiver)
        return receivers


def make_world(*, seed: int = 0, transfer: str = "broadcast") -> World:
    COLLECTIVES.clear()
    random, store = Random(seed), MemoryStore()
    learner = FakeLearnerGroup(store, random=random)
    rollouts, scoring = FakePool(), FakePool(kind="scoring replica", is_exclusive=True)
    sync = WeightSync(
        learner_group=learner,  # type: ignore[arg-type]
        rollouts=rollouts,  # type: ignore[arg-type]
        scoring=scoring,  # type: ignore[arg-type]
        config=WeightSyncConfig(timeout_seconds=TIMEOUT_SECONDS, transfer=transfer),  # type: ignore[arg-type]
    )
    return World(store=store, learner=learner, rollouts=rollouts, scoring=scoring, sync=sync, random=random)
