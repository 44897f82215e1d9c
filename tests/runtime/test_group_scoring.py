"""Rules and replicas together, and what happens to scores that are too old, with fakes in place of the actors."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from ray.exceptions import RayActorError

from system.errors import WeightSyncError
from system.records import AnswerHypotheses, BeliefTrace, CompletionGroup, Prompt, RewardTerm, ScoredGroup
from system.runtime.group_scoring import GroupScoring, lag_versions
from system.runtime.scoring_pool import ScoringPool
from system.runtime.worker_pool import WorkerState

PROMPT = Prompt(prompt_id="p", token_ids=np.array([1], np.int32), text="", reference_answer="", task="gsm8k_chains")


def term(scorer: str, *, value: float, policy_version: int) -> RewardTerm:
    return RewardTerm(scorer=scorer, value=value, status="ok", reason="", policy_version=policy_version, seconds=0.0)


def group_with(*rows: tuple[RewardTerm, ...]) -> ScoredGroup:
    return ScoredGroup(group_id=5, prompt=PROMPT, completions=(), rewards=rows)


def trace(*, policy_version: int) -> BeliefTrace:
    return BeliefTrace(
        step_ends=np.array([1], np.int32),
        outcomes=np.array([1], np.int32),
        answer_logprobs=np.zeros((2, 1), np.float32),
        policy_version=policy_version,
        trees_seconds=0.0,
        forward_seconds=0.0,
    )


HYPOTHESES = AnswerHypotheses(answers=("72",), stated=np.array([0], np.int32), seconds=0.0)
GROUP = CompletionGroup(group_id=5, prompt=PROMPT, completions=())


@dataclass
class Remote:
    """Looks like a Ray method: `.remote(...)` gives an awaitable."""

    call: Callable[..., Awaitable[object]]

    def remote(self, *arguments: object) -> Awaitable[object]:
        return self.call(*arguments)


@dataclass
class FakeRules:
    """In place of the pool of reward workers."""

    hypotheses: AnswerHypotheses | None = None

    async def score(self, group: CompletionGroup, *, with_hypotheses: bool = False) -> ScoredGroup:
        scored = group_with((term("verifier", value=1.0, policy_version=-1),))
        return replace(scored, hypotheses=self.hypotheses) if with_hypotheses else scored


@dataclass
class FakeReplica:
    """Scores with the weights of `version` when its gate opens; dies on its first call when `is_fatal`."""

    version: int = 0
    is_fatal: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)
    hypotheses: list[object] = field(default_factory=list)  # that it was asked for

    def __getattr__(self, method: str) -> Remote:
        async def call(*arguments: object) -> object:
            self.calls.append(method)
            if method == "import_state":
                assert await arguments[0] == "past weights"  # type: ignore[misc]  # as Ray resolves a reference
            if method != "score":
                return {"start": 1, "export_state": "past weights"}.get(method)
            await self.gate.wait()
            if self.is_fatal:
                raise RayActorError
            scored = group_with((term("self_certainty", value=10.0 + self.version, policy_version=self.version),))
            _, hypotheses = arguments
            if hypotheses is None:
                return scored
            self.hypotheses.append(hypotheses)
            return replace(scored, belief_traces=(trace(policy_version=self.version),))

        return Remote(call)


async def make_pool(*replicas: FakeReplica) -> ScoringPool:
    waiting = list(replicas)
    pool = ScoringPool(
        create_actor=lambda name: waiting.pop(0),
        start_seconds=1.0,
        group_seconds=5.0,
        max_restarts=3,
        kill_actor=lambda actor: None,
    )
    for _ in replicas:
        pool.serve(await pool.start_worker())
    return pool


def make_scoring(pool: ScoringPool | None, *, max_lag_versions: int | None = 0) -> GroupScoring:
    return GroupScoring(
        reward_pool=FakeRules(),  # type: ignore[arg-type]
        scoring_pool=pool,
        max_lag_versions=max_lag_versions,
    )


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), timeout=10))


def open_replica(**values: int | bool) -> FakeReplica:
    replica = FakeReplica(**values)  # type: ignore[arg-type]
    replica.gate.set()
    return replica


def test_a_group_has_the_terms_of_rules_and_of_replicas() -> None:
    async def scenario() -> None:
        scored = await make_scoring(await make_pool(open_replica(version=3))).score(GROUP)
        assert [(each.scorer, each.value, each.policy_version) for each in scored.rewards[0]] == [
            ("verifier", 1.0, -1),
            ("self_certainty", 13.0, 3),
        ]
        assert lag_versions(scored, policy_version=5) == 2

    run(scenario)


def test_beliefs_are_asked_for_the_hypotheses_that_the_rules_found() -> None:
    async def scenario() -> None:
        replica = open_replica(version=3)
        scoring = GroupScoring(
            reward_pool=FakeRules(hypotheses=HYPOTHESES),  # type: ignore[arg-type]
            scoring_pool=await make_pool(replica),
            max_lag_versions=0,
            asks_for_beliefs=True,
        )
        scored = await scoring.score(GROUP)
        assert replica.hypotheses == [HYPOTHESES]
        assert [trace.policy_version for trace in scored.belief_traces] == [3]
        assert lag_versions(scored, policy_version=4) == 1
        replica.version = 4
        fresh = await scoring.bring_up_to_date(scored, policy_version=4)
        assert replica.hypotheses == [HYPOTHESES, HYPOTHESES]
        assert [trace.policy_version for trace in fresh.belief_traces] == [4]

    run(scenario)


def test_without_replicas_only_rules_score() -> None:
    async def scenario() -> None:
        scoring = make_scoring(None)
        scored = await scoring.score(GROUP)
        assert [each.scorer for each in scored.rewards[0]] == ["verifier"]
        assert await scoring.bring_up_to_date(scored, policy_version=9) is scored

    run(scenario)


def test_scores_that_are_too_old_are_taken_again_and_the_rules_stay() -> None:
    async def scenario() -> None:
        replica = open_replica(version=3)
        scoring = make_scoring(await make_pool(replica), max_lag_versions=1)
        scored = await scoring.score(GROUP)
        assert await scoring.bring_up_to_date(scored, policy_version=4) is scored
        replica.version = 5
        fresh = await scoring.bring_up_to_date(scored, policy_version=5)
        assert [(each.scorer, each.value) for each in fresh.rewards[0]] == [("verifier", 1.0), ("self_certainty", 15.0)]
        assert scoring.num_scored_again == 1

    run(scenario)


def test_replicas_that_stay_behind_are_an_error() -> None:
    async def scenario() -> None:
        scoring = make_scoring(await make_pool(open_replica(version=3)), max_lag_versions=1)
        scored = await scoring.score(GROUP)
        with pytest.raises(WeightSyncError, match=r"4 versions behind policy version 7.*scorer.max_lag_versions=1"):
            await scoring.bring_up_to_date(scored, policy_version=7)

    run(scenario)


def test_an_offline_scorer_may_be_any_age() -> None:
    async def scenario() -> None:
        scoring = make_scoring(await make_pool(open_replica(version=0)), max_lag_versions=None)
        scored = await scoring.score(GROUP)
        assert await scoring.bring_up_to_date(scored, policy_version=400) is scored

    run(scenario)


def test_a_group_of_a_dead_replica_is_scored_by_another() -> None:
    async def scenario() -> None:
        dying, living = open_replica(is_fatal=True), open_replica(version=2)
        pool = await make_pool(dying, living)
        scored = await pool.score(GROUP)
        assert scored.rewards[0][0].value == 12.0
        assert (pool.num_removed, len(pool.members)) == (1, 1)

    run(scenario)


def test_a_replica_holds_two_groups_and_the_rest_waits() -> None:
    async def scenario() -> None:
        first, second = FakeReplica(), FakeReplica()
        pool = await make_pool(first, second)
        tasks = [asyncio.create_task(pool.score(GROUP)) for _ in range(6)]
        await asyncio.sleep(0.05)
        assert (first.calls.count("score"), second.calls.count("score")) == (2, 2)
        first.gate.set()
        second.gate.set()
        await asyncio.gather(*tasks)
        assert first.calls.count("score") + second.calls.count("score") == 6

    run(scenario)


def test_a_held_pool_finishes_its_calls_and_takes_no_new_ones() -> None:
    async def scenario() -> None:
        replica = FakeReplica()
        pool = await make_pool(replica)
        running = asyncio.create_task(pool.score(GROUP))
        await asyncio.sleep(0.05)
        holding = asyncio.create_task(pool.hold())
        waiting = asyncio.create_task(pool.score(GROUP))
        await asyncio.sleep(0.05)
        assert not holding.done()
        replica.gate.set()
        await holding
        assert running.done()
        await asyncio.sleep(0.05)
        assert replica.calls.count("score") == 1
        pool.release()
        await waiting
        assert replica.calls.count("score") == 2

    run(scenario)


def test_a_new_replica_gets_the_past_weights_from_one_that_serves() -> None:
    async def scenario() -> None:
        old, new = open_replica(), open_replica()
        pool = await make_pool(old, new)
        member = pool.members[1]
        member.state = WorkerState.JOINING
        await pool.copy_state(member)
        assert (old.calls[-1], new.calls[-1]) == ("export_state", "import_state")

    run(scenario)
