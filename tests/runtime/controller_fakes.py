"""A run of the real controller, buffer, pools and evaluator over fakes that hold a version and a train step."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
from ray.exceptions import RayActorError

from system.commands.run_inputs import make_algorithm
from system.config.load import load_config
from system.config.schema import Config
from system.data.prompts import PromptCursor
from system.metrics import MetricSet, MetricTable
from system.records import (
    GroupScores,
    Metric,
    Prompt,
    RewardTerm,
    Sampling,
    ScoredGroup,
    TrajectoryGroup,
)
from system.reports.guards import GUARD_METRICS
from system.reports.metrics import SYSTEM_METRICS
from system.runtime.checkpoint import RunState
from system.runtime.controller import Controller
from system.runtime.flight_recorder import FlightRecorder
from system.runtime.group_buffer import GroupBuffer
from system.runtime.group_scoring import GroupScoring
from system.runtime.learner_recovery import LearnerRecovery, Position
from system.runtime.learner_restarts import LearnerRestarts
from system.runtime.parts import Parts
from system.runtime.pool_member import PoolMember, PoolSettings, WorkerState
from system.runtime.pools import Pools
from system.runtime.preemption import Preemption
from system.runtime.sampler import answer_prompts
from system.runtime.weight_sync import SyncReport
from system.runtime.worker_pool import WorkerPool
from tests.fakes import FakeActor, kill
from tests.runtime.learner_fakes import FakeCheckpoints, FakeLearnerGroup, FakeLearners, FakeManifest
from tests.trajectories import single_turn

ROOT = Path(__file__).parents[2]
EVALUATION_PROMPT = 900_000  # token of the first evaluation prompt; a training prompt's token is its visit
NUM_COMPLETIONS = 2


def make_config(**overrides: object) -> Config:
    """The demo, two prompts a step; a double underscore stands for the dot of a key."""
    keys: dict[str, object] = {
        "run.num_updates": 4,
        "run.max_seconds": "null",
        "batch.prompts_per_step": 2,
        "batch.completions_per_prompt": NUM_COMPLETIONS,
        "evaluation.every_updates": 2,
        "evaluation.num_problems": 2,
        "evaluation.num_problems_final": 2,
        "evaluation.completions_per_problem_final": 2,
        "checkpoint.every_updates": 2,
        "rollout.group_timeout_seconds": 20,
        "reward.group_timeout_seconds": 30,
    }
    keys |= {name.replace("__", "."): value for name, value in overrides.items()}
    return _load(tuple(f"{name}={value}" for name, value in keys.items()))


@functools.cache
def _load(overrides: tuple[str, ...]) -> Config:
    return load_config([ROOT / "configs" / "demo.yaml"], list(overrides))


METRICS = MetricTable(SYSTEM_METRICS, GUARD_METRICS)


@dataclass(eq=False)
class FakeEngine(FakeActor):
    """A rollout worker: every token says which version wrote it, also when that changes on the way."""

    pause: Callable[[], Any] = lambda: asyncio.sleep(0)
    poison: frozenset[int] = frozenset()  # prompts that kill it
    version: int = -1
    poll_seconds: float = 0.5
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def on_load(self, version: int) -> int:
        async with self.loading:
            await self.pause()
            self.version = version
        return version

    async def on_generate(self, prompt: Prompt, group_id: int, sampling: Sampling) -> TrajectoryGroup:
        assert self.version >= 0, "a worker without weights was asked to generate"
        start = self.version
        if int(prompt.token_ids[0]) in self.poison:
            self.is_dead = True
        await self.pause()
        trajectories = tuple(
            single_turn(
                [5, 6],
                prompt=prompt.token_ids.tolist(),
                index=index,
                versions=[start, self.version],
                version_starts=[0, 1],
            )
            for index in range(sampling.num_completions)
        )
        return TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=trajectories)


@dataclass(eq=False)
class FakeVerifier(FakeActor):
    """A reward worker; `is_valid` says whose verdicts are valid."""

    pause: Callable[[], Any] = lambda: asyncio.sleep(0)
    is_valid: Callable[[int], bool] = lambda prompt: True
    poll_seconds: float = 0.5

    async def on_score(self, groups: list[tuple[TrajectoryGroup, bool]]) -> list[GroupScores]:
        await self.pause()
        return [self._scored(group) for group, _ in groups]

    def _scored(self, group: TrajectoryGroup) -> GroupScores:
        status: Any = "ok" if self.is_valid(int(group.prompt.token_ids[0])) else "invalid"
        terms = tuple(
            (
                RewardTerm(
                    scorer="verifier",
                    value=float(index % 2),
                    status=status,
                    reason="exact" if status == "ok" else "timeout",
                    policy_version=-1,
                    seconds=0.0,
                ),
            )
            for index in range(len(group.trajectories))
        )
        return GroupScores(terms=terms, evidence=None)


@dataclass
class FakeWeightSync:
    """Each member loads alone; nobody serves with another version than the newest."""

    pools: Pools
    newest: int = -1

    async def update(self, manifest: FakeManifest) -> SyncReport:
        self.newest = manifest.policy_version
        members = self.pools.rollouts.members
        await asyncio.gather(*(self.admit(member) for member in members))
        return SyncReport(
            policy_version=self.newest,
            num_receivers=len(members),
            num_from_store=0,
            num_bytes=8,
            seconds=0.0,
            pause_seconds=0.0,
            canary_max_abs_diff=0.0,
            proved_fraction=1.0,
        )

    async def admit(self, member: PoolMember) -> None:
        holds = -1
        while holds != self.newest and member.state is not WorkerState.GONE:
            version = self.newest
            try:
                holds = await asyncio.wait_for(member.actor.load.remote(version), 15.0)
            except (RayActorError, TimeoutError) as error:
                member.pool.remove(member, reason=repr(error))
        member.pool.serve(member)


@dataclass(frozen=True)
class FakeEvaluation:
    policy_version: int
    groups: tuple[ScoredGroup, ...]

    def metrics(self) -> tuple[Metric, ...]:
        return (Metric(name="eval/policy_version", value=self.policy_version),)


@dataclass
class FakeEvaluator:
    """Asks two prompts as the real one does, without its statistics: all tokens are of the version that it is told."""

    pools: Pools
    scoring: GroupScoring

    async def evaluate(self, *, policy_version: int, is_final: bool) -> FakeEvaluation:
        groups: list[ScoredGroup] = []
        await answer_prompts(
            [make_prompt(EVALUATION_PROMPT + index) for index in range(2)],
            generator=self.pools,
            score=self.scoring.verify,
            sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, num_completions=1, seed=0),
            on_group=groups.append,
        )
        for trajectory in (each for scored in groups for each in scored.group.trajectories):
            versions = set(trajectory.sampled_policy_versions.tolist())
            assert versions == {policy_version}, f"evaluation of version {policy_version} was answered by {versions}"
        return FakeEvaluation(policy_version, groups=tuple(groups))


@dataclass
class FakePrompts:
    """Prompt v has the token v."""

    num_visits: int = 0
    num_skipped: int = 0

    @property
    def cursor(self) -> PromptCursor:
        return PromptCursor(num_visits=self.num_visits, num_skipped=0)

    def go_to(self, cursor: PromptCursor) -> None:
        self.num_visits = cursor.num_visits

    def next(self) -> Prompt:
        self.num_visits += 1
        return make_prompt(self.num_visits)


def make_prompt(token: int) -> Prompt:
    return Prompt(
        prompt_id=f"p{token}", token_ids=np.array([token], np.int32), text="1+1:", reference_answer="2", task="chains"
    )


@dataclass
class FakeReporter:
    """What was reported, in order."""

    lines: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    dead_letters: list[int] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    fails_at: int | None = None

    def go_back(self, policy_version: int | None) -> None:
        self.lines = [line for line in self.lines if policy_version is not None and line[0] <= policy_version]

    def new_metrics(self) -> MetricSet:
        return MetricSet(METRICS)

    def enter_phase(self, name: str) -> None:
        self.phases.append(name)

    def log_update(self, policy_version: int, *, metrics: MetricSet, groups: object) -> None:
        if policy_version == self.fails_at:
            raise OSError("the disk is full")
        self.lines.append((policy_version, metrics.reduce()))

    def record_dead_letter(self, group_id: int, **values: object) -> None:
        self.dead_letters.append(group_id)

    def alert(self, title: str, *, text: str) -> None:
        self.alerts.append(f"{title}: {text}")

    def record_evaluation(self, result: object) -> None: ...


class FakeRun:
    """One run. Actors are made on demand, so that there is always another one."""

    def __init__(
        self,
        config: Config,
        *,
        random: Random | None = None,
        poison: frozenset[int] = frozenset(),
        is_valid: Callable[[int], bool] = lambda prompt: True,
        run_folder: Path | None = None,
    ) -> None:
        """With a `run_folder` the flight recorder writes into it."""
        self.config = config
        self.controller: Controller | None = None  # once it runs
        self.random = random or Random(0)
        self.actors: list[FakeActor] = []
        engine_settings = PoolSettings(
            kind="rollout worker", section="rollout", num_workers=config.rollout.num_workers, start_seconds=50.0,
            call_seconds=config.rollout.group_timeout_seconds, max_restarts=config.rollout.max_restarts, max_load=64,
        )  # fmt: skip
        verifier_settings = PoolSettings(
            kind="reward worker", section="reward", num_workers=1, start_seconds=50.0, receives_weights=False,
            call_seconds=config.reward.group_timeout_seconds, max_restarts=config.reward.max_restarts, max_load=1,
            is_exclusive=True, max_calls_at_once=16, max_shared_attempts=1,
        )  # fmt: skip
        self.pools = Pools(
            rollouts=self._pool(engine_settings, lambda: FakeEngine(pause=self.pause, poison=poison)),
            rewards=self._pool(verifier_settings, lambda: FakeVerifier(pause=self.pause, is_valid=is_valid)),
            scoring=None,
        )
        self.buffer: GroupBuffer  # of the present controller
        self.reporter = FakeReporter()
        self.flight_recorder = FlightRecorder(
            run_folder or Path("unused"),
            config=config,
            alert=self.reporter.alert,
            num_steps=None if run_folder is not None else 0,
        )
        self.checkpoints = FakeCheckpoints()
        self.learners = FakeLearners(
            max_staleness=config.controller.max_staleness, pause=self.pause, checkpoints=self.checkpoints
        )
        self.learners.create()
        self.prompts = FakePrompts()
        self.preemption = Preemption()
        self.restarts = LearnerRestarts(max_restarts=config.learner.max_restarts)

    @property
    def learner(self) -> FakeLearnerGroup:
        """The present one."""
        return self.learners.created[-1]

    async def pause(self) -> None:
        """Work takes a random time, mostly none."""
        await asyncio.sleep(self.random.choice((0.0, 0.0, 0.1, 1.0, 3.0)))

    def _pool(self, settings: PoolSettings, make: Callable[[], FakeActor]) -> WorkerPool:
        def create(name: str) -> FakeActor:
            self.actors.append(make())
            return self.actors[-1]

        return WorkerPool(settings, create_actor=create, kill_actor=kill)

    async def run(self, *, faults: Awaitable[None] | None = None) -> Controller:
        """The controller after its run, which `faults` disturb once its workers have started. Raises what ended it."""
        await self.pools.start()
        disturbing = asyncio.ensure_future(faults) if faults is not None else None
        self.start = asyncio.get_running_loop().time()
        recovery = LearnerRecovery(
            learners=cast(Any, self.learners),
            pools=self.pools,
            checkpoints=cast(Any, self.checkpoints),
            reporter=cast(Any, self.reporter),
            restarts=self.restarts,
            make_controller=self._make_controller,
            learner_group=cast(Any, self.learner),
        )
        try:
            controller = await recovery.run(Position())
        finally:
            if disturbing is not None:
                disturbing.cancel()
            await self.pools.shutdown(seconds=1.0)
        self.buffer.drop_all(reason="run_ended")
        return controller

    def _make_controller(self, learner_group: Any, state: RunState | None) -> Controller:
        assert not any(pool.num_calls_in_flight for pool in self.pools.all()), "calls of a former learner are left"
        if state is not None:
            self.prompts.go_to(state.cursor)
        self.buffer = GroupBuffer(
            prompts_per_step=self.config.batch.prompts_per_step,
            max_staleness=self.config.controller.max_staleness,
            published_version=state.policy_version if state else 0,
            num_updates=self.config.run.num_updates,
            restored=state.ledger if state else None,
            outstanding=state.outstanding if state else None,
        )
        scoring = GroupScoring(reward_pool=self.pools.rewards, scoring_pool=None, max_lag_versions=0)
        parts: dict[str, Any] = {
            "algorithm": make_algorithm(self.config, task=cast(Any, None)),
            "learner_group": learner_group,
            "pools": self.pools,
            "scoring": scoring,
            "weight_sync": FakeWeightSync(self.pools),
            "buffer": self.buffer,
            "prompt_source": self.prompts,
            "evaluator": FakeEvaluator(self.pools, scoring=scoring),
            "checkpoints": self.checkpoints,
            "preemption": self.preemption,
            "restarts": self.restarts,
            "flight_recorder": self.flight_recorder,
        }
        self.controller = Controller(
            config=self.config,
            parts=Parts(**parts),
            reporter=cast(Any, self.reporter),
            resumed=state,
            elapsed_seconds=lambda: asyncio.get_running_loop().time() - self.start,
        )
        return self.controller
