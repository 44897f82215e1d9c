"""The loops of a run, in one asyncio event loop of the driver process.

    prompt_loop    group_buffer.wait_for_slot ─> lease ─> rollout task
    rollout tasks  pools.generate ─> scoring.score ─> group_buffer.put
    train_loop     group_buffer.next_batch ─> samples ─> packed batch ─> learner_group.train_and_publish
                   ─> weight_sync.update ─> group_buffer.version_published ─> evaluate, checkpoint
    supervise      of each pool: a worker is missing ─> start one ─> weight_sync.admit

| loop         | waits for                              | who unblocks it                         |
|--------------|----------------------------------------|-----------------------------------------|
| prompt_loop  | a slot                                 | train_loop publishes; a group is dropped |
| rollout task | a serving worker, the engine, a scorer | weight_sync, the workers                |
| train_loop   | prompts_per_step scored groups         | rollout tasks                           |
| supervise    | a lost worker                          | whoever notices the death               |

The first loop that fails ends the others; every wait on a worker has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from system.algorithms.base import Algorithm, Credit
from system.config.schema import Config
from system.data.batching import pack_batch
from system.data.prompts import PromptSource
from system.data.samples import make_samples
from system.records import Prompt, Sampling, ScoredGroup
from system.reports.guards import HackingGuards
from system.reports.reporter import Reporter
from system.reports.step_metrics import add_batch_metrics, add_group_metrics
from system.runtime.checkpoint import CheckpointStore, RunState
from system.runtime.evaluator import EvaluationResult, Evaluator
from system.runtime.group_buffer import GroupBuffer
from system.runtime.group_scoring import GroupScoring
from system.runtime.learner_group import LearnerGroup
from system.runtime.ledger import Ledger
from system.runtime.pools import Pools
from system.runtime.scoring_state import logprob_difference
from system.runtime.weight_sync import WeightSync
from system.runtime.worker_failures import PoisonedCallError
from system.weights.manifest import WeightsManifest

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the controller connects."""

    algorithm: Algorithm
    learner_group: LearnerGroup
    pools: Pools
    scoring: GroupScoring
    weight_sync: WeightSync
    buffer: GroupBuffer
    ledger: Ledger
    prompt_source: PromptSource
    evaluator: Evaluator
    checkpoints: CheckpointStore


@dataclass(slots=True, kw_only=True)
class Outcome:
    """How the run stands; the summary is made of it."""

    policy_version: int
    completion_tokens: int  # trained on since the start
    canary_max_abs_diff: float
    before: EvaluationResult | None = None
    after: EvaluationResult | None = None
    stopped_by: str = "num_updates"


class Controller:
    """Runs the loops until num_updates or max_seconds; the first error of any loop ends all of them."""

    def __init__(
        self,
        *,
        config: Config,
        parts: Parts,
        reporter: Reporter,
        resumed: RunState | None,
        elapsed_seconds: Callable[[], float],
    ) -> None:
        """`elapsed_seconds` counts from the start of the command, over all sessions of the run."""
        self._config = config
        self._parts = parts
        self._reporter = reporter
        self._elapsed_seconds = elapsed_seconds
        self._metrics = reporter.new_metrics()
        self._outstanding: dict[int, Prompt] = dict(resumed.outstanding) if resumed else {}
        self._rollout_tasks: set[asyncio.Task[None]] = set()
        self._last_log_time = self._published_time = time.perf_counter()
        self.outcome = Outcome(
            policy_version=resumed.policy_version if resumed else 0,
            completion_tokens=resumed.completion_tokens if resumed else 0,
            canary_max_abs_diff=resumed.canary_max_abs_diff if resumed else 0.0,
        )
        self._guards = HackingGuards()
        if resumed is not None and resumed.guards is not None:
            self._guards.restore(resumed.guards)
        self._state = self._run_state()
        self._sampling = Sampling(
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            top_k=config.rollout.top_k,
            max_tokens=config.rollout.max_completion_tokens,
            num_completions=config.batch.completions_per_prompt,
            seed=config.run.seed,
        )

    async def run(self) -> Outcome:
        """The whole run. Cancel it to stop early; `outcome` then says how far it came."""
        try:
            async with self._parts.pools.supervised(self._parts.weight_sync.admit), asyncio.TaskGroup() as loops:
                await self._synchronise(await self._parts.learner_group.publish())
                self._parts.buffer.version_published(self.outcome.policy_version)
                if self.outcome.policy_version == 0:
                    self.outcome.before = await self._evaluate(is_final=True)
                    self._log(())
                else:
                    # The line of this version was logged by the session before; what its weights took to send again
                    # belongs to no update.
                    self._metrics = self._reporter.new_metrics()
                self._published_time = time.perf_counter()
                for group_id, prompt in self._outstanding.items():
                    self._start_rollout(loops, group_id, prompt=prompt)
                prompt_loop = loops.create_task(self._prompt_loop(loops))
                await self._train_loop()
                for task in (prompt_loop, *self._rollout_tasks):
                    task.cancel()
        finally:
            self._parts.buffer.close()
        return self.outcome

    async def _prompt_loop(self, loops: asyncio.TaskGroup) -> None:
        """Lease prompts as long as the buffer grants slots."""
        buffer, ledger = self._parts.buffer, self._parts.ledger
        while True:
            await buffer.wait_for_slot()
            prompt, group_id = self._parts.prompt_source.next(), ledger.last_group_id + 1
            buffer.lease(group_id)
            self._outstanding[group_id] = prompt
            self._start_rollout(loops, group_id, prompt=prompt)

    def _start_rollout(self, loops: asyncio.TaskGroup, group_id: int, *, prompt: Prompt) -> None:
        task = loops.create_task(self._roll_out(group_id, prompt=prompt))
        self._rollout_tasks.add(task)
        task.add_done_callback(self._rollout_tasks.discard)

    async def _roll_out(self, group_id: int, *, prompt: Prompt) -> None:
        """Generate and score one group; one that every worker died of becomes a dead letter."""
        parts = self._parts
        try:
            group = await parts.pools.generate(
                prompt, group_id=group_id, sampling=self._sampling, on_retry=lambda _: parts.ledger.regenerate(group_id)
            )
            parts.ledger.mark_generated(group_id)
            scored = await parts.scoring.score(group)
        except PoisonedCallError as e:
            self._reporter.record_dead_letter(
                group_id,
                prompt=prompt,
                sampling=self._sampling,
                policy_version=self.outcome.policy_version,
                errors=e.errors,
            )
            self._drop(group_id, reason="poisoned")
            return
        reason = parts.algorithm.refusal(scored)
        if reason is None:
            parts.buffer.put(scored)
        else:
            self._drop(group_id, reason=reason)

    async def _train_loop(self) -> None:
        """Updates until the end of the run, then the last evaluation and checkpoint."""
        config, outcome = self._config, self.outcome
        is_last = outcome.policy_version >= config.run.num_updates
        if is_last:
            outcome.after = await self._evaluate(is_final=True)
            self._log(())
        while not is_last:
            groups = await self._next_batch()
            await self._train_on(groups)
            is_last = self._is_last()
            if is_last:
                outcome.after = await self._evaluate(is_final=True)
            elif _is_due(config.evaluation.every_updates, outcome.policy_version):
                await self._evaluate(is_final=False)
            self._log(groups)
            if is_last or _is_due(config.checkpoint.every_updates, outcome.policy_version):
                await self._save_checkpoint()

    def _is_last(self) -> bool:
        if self.outcome.policy_version >= self._config.run.num_updates or self.outcome.stopped_by == "guards":
            return True
        limit = self._config.run.max_seconds
        if limit is not None and self._elapsed_seconds() > limit:
            self.outcome.stopped_by = "max_seconds"
            return True
        return False

    async def _next_batch(self) -> list[ScoredGroup]:
        with self._phase("rollout"):
            groups = await self._parts.buffer.next_batch()
        # since the weights were published, not since this wait began: an evaluation overlaps with the next rollouts
        seconds = time.perf_counter() - self._published_time
        num_tokens = sum(trajectory.num_sampled for scored in groups for trajectory in scored.group.trajectories)
        self._metrics.add("rollout/tokens_per_second", num_tokens / seconds)
        return groups

    async def _train_on(self, groups: list[ScoredGroup]) -> None:
        """One batch and its publication."""
        parts, config = self._parts, self._config.batch
        with self._phase("score"):
            version = self.outcome.policy_version
            groups = await asyncio.gather(
                *(parts.scoring.bring_up_to_date(group, policy_version=version) for group in groups)
            )
            pool = parts.pools.scoring
            difference = await logprob_difference(pool) if pool is not None else None
            if difference is not None:
                self._metrics.add("scorer/logprob_max_abs_diff_nats", difference)
        with self._phase("batch"):
            credit = parts.algorithm.credit(groups)
            samples = (make_samples(group, credit=own) for group, own in zip(groups, credit.groups, strict=True))
            batch = pack_batch(
                [sample for each in samples for sample in each],
                num_ranks=self._config.learner.num_ranks,
                tokens_per_microbatch=config.tokens_per_microbatch,
                optimizer_steps=config.optimizer_steps,
                skip_zero_advantages=config.skip_zero_advantages,
            )
            add_group_metrics(self._metrics, groups, credit=credit, policy_version=version)
            parts.algorithm.add_metrics(self._metrics, groups, credit=credit)
            add_batch_metrics(self._metrics, batch, num_groups=len(groups))
            is_due = version == 0 or _is_due(self._config.evaluation.every_updates, version)
            self._show_heat_maps(groups, credit=credit, is_due=is_due)
        with self._phase("train"):
            result, manifest = await parts.learner_group.train_and_publish(batch)
        self._metrics.extend(result.metrics)
        parts.buffer.mark_trained(groups)
        for group in groups:
            del self._outstanding[group.group_id]
        self.outcome.policy_version = result.policy_version
        self.outcome.completion_tokens += batch.num_loss_tokens
        await self._synchronise(manifest)
        self._add_totals()
        self._watch_for_hacking()
        # before the next step's groups are leased: a synchronous checkpoint so has nothing in flight
        self._state = self._run_state()
        self._published_time = time.perf_counter()
        parts.buffer.version_published(result.policy_version)

    def _show_heat_maps(self, groups: Sequence[ScoredGroup], *, credit: Credit, is_due: bool) -> None:
        algorithm, version = self._parts.algorithm, self.outcome.policy_version
        if algorithm.figure is not None:
            panels = algorithm.heat_maps(groups, credit=credit, count=self._config.tracker.completions_per_table)
            self._reporter.show_heat_maps(panels, figure=algorithm.figure, policy_version=version, is_due=is_due)

    def _watch_for_hacking(self) -> None:
        """Alert, once for each sign that appears, when the policy seems to exploit its reward."""
        action = self._config.guards.action
        if action == "off":
            return
        report = self._guards.observe(self._metrics.reduce(), update=self.outcome.policy_version)
        for name, value in report.metrics.items():
            self._metrics.add(name, value)
        for alarm in report.new_alarms:
            self._reporter.alert("Possible reward hacking", text=alarm.message)
            if action == "stop":
                self.outcome.stopped_by = "guards"

    async def _synchronise(self, manifest: WeightsManifest) -> None:
        with self._phase("weight_sync"):
            report = await self._parts.weight_sync.update(manifest)
        self.outcome.canary_max_abs_diff = max(self.outcome.canary_max_abs_diff, report.canary_max_abs_diff)
        self._metrics.add("weight_sync/seconds", report.seconds)
        self._metrics.add("weight_sync/publish_seconds", manifest.publish_seconds)
        self._metrics.add("weight_sync/pause_seconds", report.pause_seconds)
        self._metrics.add("weight_sync/bytes", report.num_bytes)
        self._metrics.add("weight_sync/num_receivers", report.num_receivers)
        self._metrics.add("weight_sync/num_from_store", report.num_from_store)
        self._metrics.add("weight_sync/canary_max_abs_diff_nats", report.canary_max_abs_diff)
        self._metrics.add("weight_sync/proved_fraction", report.proved_fraction)

    async def _evaluate(self, *, is_final: bool) -> EvaluationResult:
        with self._phase("evaluate"):
            result = await self._parts.evaluator.evaluate(policy_version=self.outcome.policy_version, is_final=is_final)
        self._metrics.extend(result.metrics())
        self._reporter.record_evaluation(result)
        return result

    async def _save_checkpoint(self) -> None:
        """Learner, exported policy and run state, all of the same policy version."""
        parts, version = self._parts, self.outcome.policy_version
        with self._phase("checkpoint"):
            directory = parts.checkpoints.partial_directory(version)
            written = await parts.learner_group.save_checkpoint(directory)
            await asyncio.to_thread(parts.checkpoints.commit, directory, self._state, written=written)

    def _run_state(self) -> RunState:
        return RunState(
            policy_version=self.outcome.policy_version,
            cursor=self._parts.prompt_source.cursor,
            ledger=self._parts.ledger.state(),
            outstanding=dict(self._outstanding),
            completion_tokens=self.outcome.completion_tokens,
            seconds=self._elapsed_seconds(),
            canary_max_abs_diff=self.outcome.canary_max_abs_diff,
            guards=self._guards.state(),
        )

    def _drop(self, group_id: int, *, reason: str) -> None:
        del self._outstanding[group_id]
        self._parts.buffer.drop(group_id, reason=reason)

    def _add_totals(self) -> None:
        """Counts since the start, taken before the next step's groups are leased: the same in every synchronous run."""
        parts, pools = self._parts, self._parts.pools
        totals = parts.ledger.totals()
        for name in ("leased", "generated", "scored", "trained", "regenerated", "dropped", "in_flight"):
            self._metrics.add(f"ledger/{name}", getattr(totals, name))
        for reason, count in totals.dropped_by_reason.items():
            self._metrics.add(f"ledger/dropped_{reason}", count)
        for state in ("leased", "generated"):
            self._metrics.add(f"queue/{state}_groups", parts.ledger.num_in_state(state))
        self._metrics.add("queue/ready_groups", parts.buffer.num_ready)
        self._metrics.add("queue/outstanding_groups", parts.buffer.num_outstanding)
        for area, pool in (("rollout", pools.rollouts), ("reward", pools.rewards), ("scorer", pools.scoring)):
            if pool is not None:
                self._metrics.add(f"{area}/num_workers", pool.num_serving)
                self._metrics.add(f"{area}/num_restarts", pool.num_removed)
        if pools.scoring is not None:
            self._metrics.add("scorer/num_scored_again", parts.scoring.num_scored_again)
        self._metrics.add("batch/num_skipped_prompts", parts.prompt_source.num_skipped)

    def _log(self, groups: list[ScoredGroup] | tuple[()]) -> None:
        """One tracker call for everything since the last one."""
        now = time.perf_counter()
        self._metrics.add("time/step_seconds", now - self._last_log_time)
        self._metrics.add("progress/policy_version", self.outcome.policy_version)
        self._metrics.add("progress/tokens", self.outcome.completion_tokens)
        self._metrics.add("progress/seconds", self._elapsed_seconds())
        self._last_log_time = now
        self._reporter.log_update(self.outcome.policy_version, metrics=self._metrics, groups=groups)
        self._metrics = self._reporter.new_metrics()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._reporter.enter_phase(name)
        start = time.perf_counter()
        yield
        self._metrics.add(f"time/{name}_seconds", time.perf_counter() - start)


def _is_due(every_updates: int | None, policy_version: int) -> bool:
    return every_updates is not None and policy_version % every_updates == 0
