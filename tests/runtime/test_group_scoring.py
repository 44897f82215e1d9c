"""Rules and replicas together, and what happens to scores that are too old, with fakes in place of the actors."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from system.errors import WeightSyncError
from system.records import GroupScores, Prompt, RewardTerm, TrajectoryGroup
from system.runtime.group_scoring import GroupScoring, lag_versions
from system.runtime.worker_pool import WorkerPool
from tests.fakes import FakeActor, make_pool, serve_all

PROMPT = Prompt(prompt_id="p", token_ids=np.array([1], np.int32), text="", reference_answer="", task="gsm8k_chains")


def term(scorer: str, *, value: float, policy_version: int) -> RewardTerm:
    return RewardTerm(scorer=scorer, value=value, status="ok", reason="", policy_version=policy_version, seconds=0.0)


@dataclass(frozen=True)
class Found:
    """Stands for what an algorithm's rule finds and its policy scorer makes of it."""

    by_version: int | None = None


GROUP = TrajectoryGroup(group_id=5, prompt=PROMPT, trajectories=())


@dataclass(eq=False)
class FakeRules(FakeActor):
    """A reward worker."""

    async def on_score(self, groups: list[tuple[TrajectoryGroup, bool]]) -> list[GroupScores]:
        terms = ((term("verifier", value=1.0, policy_version=-1),),)
        return [GroupScores(terms=terms, evidence=(Found(),) if is_asked else None) for _, is_asked in groups]


@dataclass(eq=False)
class FakeReplica(FakeActor):
    """Scores with the weights of `version`; dies on its first call when `is_fatal`."""

    version: int = 0
    is_fatal: bool = False
    was_given: list[object] = field(default_factory=list)

    async def on_score(self, group: TrajectoryGroup, evidence: tuple[Found, ...] | None) -> GroupScores:
        self.is_dead = self.is_fatal
        terms = ((term("self_certainty", value=10.0 + self.version, policy_version=self.version),),)
        if evidence is None:
            return GroupScores(terms=terms, evidence=None)
        self.was_given.append(evidence)
        return GroupScores(terms=terms, evidence=(Found(by_version=self.version),))


async def make_replicas(*replicas: FakeReplica) -> WorkerPool:
    pool = make_pool(list(replicas), num_workers=len(replicas), is_exclusive=True, max_load=2, max_shared_attempts=1)
    await serve_all(pool)
    return pool


async def make_rules() -> WorkerPool:
    pool = make_pool([FakeRules()], receives_weights=False, max_load=1, max_calls_at_once=16)
    await pool.start()
    return pool


async def make_scoring(pool: WorkerPool | None, *, max_lag_versions: int | None = 0) -> GroupScoring:
    return GroupScoring(
        reward_pool=await make_rules(),
        scoring_pool=pool,
        max_lag_versions=max_lag_versions,
    )


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), timeout=10))


def test_a_group_has_the_terms_of_rules_and_of_replicas() -> None:
    async def scenario() -> None:
        scoring = await make_scoring(await make_replicas(FakeReplica(version=3)))
        scored = await scoring.score(GROUP)
        assert [(each.scorer, each.value, each.policy_version) for each in scored.terms[0]] == [
            ("verifier", 1.0, -1),
            ("self_certainty", 13.0, 3),
        ]
        assert lag_versions(scored, policy_version=5) == 2

    run(scenario)


def test_replicas_are_given_what_the_rules_found_where_an_algorithm_asks_for_evidence() -> None:
    async def scenario() -> None:
        replica = FakeReplica(version=3)
        scoring = GroupScoring(
            reward_pool=await make_rules(),
            scoring_pool=await make_replicas(replica),
            max_lag_versions=0,
            asks_for_evidence=True,
        )
        scored = await scoring.score(GROUP)
        assert replica.was_given == [(Found(),)]
        assert scored.evidence == (Found(by_version=3),)
        assert lag_versions(scored, policy_version=4) == 1
        replica.version = 4
        fresh = await scoring.bring_up_to_date(scored, policy_version=4)
        assert replica.was_given == [(Found(),), (Found(by_version=3),)]
        assert fresh.evidence == (Found(by_version=4),)
        assert (await scoring.verify(GROUP)).evidence is None

    run(scenario)


def test_without_replicas_only_rules_score() -> None:
    async def scenario() -> None:
        scoring = await make_scoring(None)
        scored = await scoring.score(GROUP)
        assert [each.scorer for each in scored.terms[0]] == ["verifier"]
        assert await scoring.bring_up_to_date(scored, policy_version=9) is scored

    run(scenario)


def test_scores_that_are_too_old_are_taken_again_and_the_rules_stay() -> None:
    async def scenario() -> None:
        replica = FakeReplica(version=3)
        scoring = await make_scoring(await make_replicas(replica), max_lag_versions=1)
        scored = await scoring.score(GROUP)
        assert await scoring.bring_up_to_date(scored, policy_version=4) is scored
        replica.version = 5
        fresh = await scoring.bring_up_to_date(scored, policy_version=5)
        assert [(each.scorer, each.value) for each in fresh.terms[0]] == [("verifier", 1.0), ("self_certainty", 15.0)]
        assert scoring.num_scored_again == 1

    run(scenario)


def test_replicas_that_stay_behind_are_an_error() -> None:
    async def scenario() -> None:
        scoring = await make_scoring(await make_replicas(FakeReplica(version=3)), max_lag_versions=1)
        scored = await scoring.score(GROUP)
        with pytest.raises(WeightSyncError, match=r"4 versions behind policy version 7.*scorer.max_lag_versions=1"):
            await scoring.bring_up_to_date(scored, policy_version=7)

    run(scenario)


def test_an_offline_scorer_may_be_any_age() -> None:
    async def scenario() -> None:
        scoring = await make_scoring(await make_replicas(FakeReplica(version=0)), max_lag_versions=None)
        scored = await scoring.score(GROUP)
        assert await scoring.bring_up_to_date(scored, policy_version=400) is scored

    run(scenario)


def test_a_group_of_a_dead_replica_is_scored_by_another() -> None:
    async def scenario() -> None:
        dying, living = FakeReplica(is_fatal=True), FakeReplica(version=2)
        pool = await make_replicas(dying, living)
        scored = await pool.call("score", GROUP, None, what="score")
        assert scored.terms[0][0].value == 12.0
        assert (pool.num_removed, len(pool.members)) == (1, 1)

    run(scenario)
