"""The loops of a run, in one asyncio event loop of the driver process that dispatches and nothing else.

    prompt_loop    group_buffer.lease ─> rollout task
    rollout tasks  pools.generate ─> scoring.score ─> group_buffer.put
    prepare_loop   group_buffer.next_batch ─> credit ─> packed batch                         (batch_preparation.py)
    train_loop     prepared batch ─> learner_group.train_and_publish ─> weight_sync.update
                   ─> group_buffer.version_published ─> evaluate, report, checkpoint
    supervise      of each pool: a worker is missing ─> start one ─> admit it

| loop         | waits for                              | who unblocks it                             |
|--------------|----------------------------------------|---------------------------------------------|
| prompt_loop  | a slot                                 | train_loop publishes; a group is dropped    |
| rollout task | a serving worker, the engine, a scorer | weight_sync, the workers                    |
| prepare_loop | prompts_per_step scored groups         | rollout tasks; train_loop takes the last one |
| train_loop   | a prepared batch, at most max_seconds  | prepare_loop                                |
| supervise    | a lost worker                          | whoever notices the death                   |

Files, figures and W&B calls go to a thread of their own, credit and packing to another; a checkpoint is written while
the next updates are made (checkpoint_writing.py). While an evaluation or the copy for a checkpoint holds up the
train_loop, rollouts run on as far as the buffer lets them. The first loop that fails ends the others; every wait on a
worker has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from system.config.schema import Config
from system.records import Sampling, ScoredGroup
from system.reports.bottleneck import bottleneck
from system.reports.guards import HackingGuards
from system.reports.reporter import Reporter
from system.runtime.batch_preparation import BatchPreparation, PreparedBatch
from system.runtime.checkpoint import RunState
from system.runtime.checkpoint_writing import CheckpointWriting
from system.runtime.clock import now
from system.runtime.drop_watch import DropWatch
from system.runtime.evaluator import EvaluationResult
from system.runtime.ordered_thread import OrderedThread
from system.runtime.parts import Outcome, Parts
from system.runtime.run_metrics import add_group_counts, add_sync, add_worker_counts
from system.runtime.stages import ControllerStages
from system.runtime.step_waits import StepWaits
from system.runtime.worker_failures import PoisonedCallError
from system.weights.manifest import WeightsManifest

_LAST_CHECKPOINT_SECONDS = 10.0  # that a run which is stopped gives the checkpoint that is being written


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
        self.buffer = parts.buffer  # all groups in flight, and the ledger of the others
        self._reporter = reporter
        self._reports = OrderedThread("reports")
        self._elapsed_seconds = elapsed_seconds
        self._metrics = reporter.new_metrics()
        self._rollout_tasks: set[asyncio.Task[None]] = set()
        self._last_log_time = self._generating_since = now()
        self._waits = StepWaits(parts.buffer.timeline)
        self._drops = DropWatch(max_in_a_row=config.controller.max_dropped_in_a_row)
        self._preparation = BatchPreparation(
            config=config,
            algorithm=parts.algorithm,
            buffer=parts.buffer,
            scoring=parts.scoring,
            replicas=parts.pools.scoring,
            new_metrics=reporter.new_metrics,
            accumulate=parts.learner_group.accumulate,
        )
        self.stages = ControllerStages(buffer=parts.buffer, preparation=self._preparation, reports=self._reports)
        self.outcome = Outcome(
            policy_version=resumed.policy_version if resumed else 0,
            completion_tokens=resumed.completion_tokens if resumed else 0,
            canary_max_abs_diff=resumed.canary_max_abs_diff if resumed else 0.0,
        )
        self._guards = HackingGuards()
        if resumed is not None and resumed.guards is not None:
            self._guards.restore(resumed.guards)
        self._state = self._run_state()
        self._saved_version = self.outcome.policy_version  # nothing to save before the first update
        self._unlogged: Sequence[ScoredGroup] | None = None  # groups of an update that is done, until its line is
        self._checkpoints = CheckpointWriting(
            learner_group=parts.learner_group,
            store=parts.checkpoints,
            timeout_seconds=config.checkpoint.write_timeout_seconds,
        )
        rollout = config.rollout
        self._sampling = Sampling(
            temperature=rollout.temperature, top_p=rollout.top_p, top_k=rollout.top_k, seed=config.run.seed,
            max_tokens=rollout.max_completion_tokens, num_completions=config.batch.completions_per_prompt,
        )  # fmt: skip

    async def run(self) -> Outcome:
        """The whole run. Cancel it to stop early; `outcome` then says how far it came."""
        try:
            async with self._parts.pools.supervised(self._parts.weight_sync.admit), asyncio.TaskGroup() as loops:
                await self._synchronise(await self._parts.learner_group.publish())
                self._parts.buffer.version_published(self.outcome.policy_version)
                if self.outcome.policy_version == 0:
                    self.outcome.before = await self._evaluate(is_final=True)
                    await self._log(())
                self._metrics = self._reporter.new_metrics()
                self._generating_since = now()
                for group_id in self._parts.buffer.outstanding():
                    self._start_rollout(loops, group_id)
                background = [
                    loops.create_task(self._prompt_loop(loops)),
                    loops.create_task(self._preparation.prepare_loop()),
                ]
                await self._parts.preemption.run(self._train_loop(), finish=self._save_what_is_new)
                for task in (*background, *self._rollout_tasks):
                    task.cancel()
                await self._reports.finish()
        finally:
            await self._checkpoints.close(seconds=_LAST_CHECKPOINT_SECONDS)
            self._parts.buffer.close()
            self._reports.close()
            self.stages.end()
        return self.outcome

    async def _prompt_loop(self, loops: asyncio.TaskGroup) -> None:
        """Lease prompts as long as the buffer grants slots."""
        while True:
            record = await self._parts.buffer.lease(self._parts.prompt_source.next)
            self._start_rollout(loops, record.group_id)

    def _start_rollout(self, loops: asyncio.TaskGroup, group_id: int) -> None:
        task = loops.create_task(self._roll_out(group_id))
        self._rollout_tasks.add(task)
        task.add_done_callback(self._rollout_tasks.discard)

    async def _roll_out(self, group_id: int) -> None:
        """Generate and score one group; one that every worker died of becomes a dead letter."""
        parts, buffer = self._parts, self._parts.buffer
        prompt = buffer.start_generating(group_id).prompt
        try:
            group = await parts.pools.generate(
                prompt,
                group_id=group_id,
                sampling=self._sampling,
                on_start=lambda: buffer.worker_has(group_id),
                on_retry=lambda _: buffer.generate_again(group_id),
            )
            buffer.start_scoring(group_id)
            scored = await parts.scoring.score(group)
        except PoisonedCallError as error:
            self._reports.submit(
                self._reporter.record_dead_letter,
                group_id,
                prompt=prompt,
                sampling=self._sampling,
                policy_version=self.outcome.policy_version,
                errors=error.errors,
            )
            buffer.drop(group_id, reason="poisoned")
            self._drops.note_dropped(prompt, reason="poisoned")
            return
        reason = parts.algorithm.refusal(scored)
        if reason is None:
            self._drops.note_trainable()
            buffer.put(scored)
        else:
            buffer.drop(group_id, reason=reason)
            self._drops.note_dropped(prompt, reason=reason, scored=scored)

    async def _train_loop(self) -> None:
        """Updates until the end of the run, then the last evaluation and checkpoint."""
        config, outcome = self._config, self.outcome
        first_version = outcome.policy_version
        while not self._is_last():
            prepared = await self._next_batch()
            if prepared is None:
                break
            async with self._parts.preemption.uninterrupted:
                has_new_weights = await self._train_on(prepared)
            if not has_new_weights:
                continue
            if self._is_last():
                outcome.after = await self._evaluate(is_final=True)
            elif _is_due(config.evaluation.every_updates, outcome.policy_version):
                await self._evaluate(is_final=False)
            await self._log(prepared.groups)
            if outcome.after is not None or _is_due(config.checkpoint.every_updates, outcome.policy_version):
                await self._save_checkpoint()
        if outcome.after is None:  # it was over before it began, or while it waited
            outcome.after = await self._evaluate(is_final=True)
            await self._log(())
            if outcome.policy_version > first_version:
                await self._save_checkpoint()
        await self._checkpoints.finish()

    def _is_last(self) -> bool:
        outcome = self.outcome
        if outcome.policy_version < self._config.run.num_updates and outcome.stopped_by == "num_updates":
            limit = self._config.run.max_seconds
            if limit is None or self._elapsed_seconds() <= limit:
                return False
            outcome.stopped_by = "max_seconds"
        return True

    async def _next_batch(self) -> PreparedBatch | None:
        """The batch of the next update; None when max_seconds are over before there is one."""
        self._enter_phase("rollout")
        limit, start = self._config.run.max_seconds, now()
        seconds_left = None if limit is None else max(0.0, limit - self._elapsed_seconds())
        try:
            async with asyncio.timeout(seconds_left):
                prepared = await self._preparation.next()
        except TimeoutError:
            self.outcome.stopped_by = "max_seconds"
            return None
        end, self._metrics = now(), prepared.metrics
        # what this loop waited for, in turn; prepared ahead, a batch costs it nothing
        taken, rescored = max(start, prepared.taken_at), max(start, prepared.rescored_at)
        self._metrics.add("time/rollout_seconds", taken - start)
        self._metrics.add("time/rescore_seconds", rescored - taken)
        self._metrics.add("time/batch_seconds", end - rescored)
        self._waits.add_batch(
            (group.group_id for group in prepared.groups),
            start=start, taken_at=prepared.taken_at, rescored_at=prepared.rescored_at, end=end,
        )  # fmt: skip
        num_tokens = sum(
            trajectory.num_sampled for scored in prepared.groups for trajectory in scored.group.trajectories
        )
        seconds = prepared.taken_at - self._generating_since
        if seconds > 0:
            self._metrics.add("rollout/tokens_per_second", num_tokens / seconds)
        if self._config.controller.max_staleness:
            self._generating_since = prepared.taken_at
        return prepared

    async def _train_on(self, prepared: PreparedBatch) -> bool:
        """One batch and its publication. False: its gradients were not finite, and the weights are what they were."""
        parts, version = self._parts, self.outcome.policy_version
        self._reports.submit(self._show_heat_maps, prepared, policy_version=version)
        with self._phase("train"):
            self._reports.submit(parts.flight_recorder.begin, prepared, policy_version=version)
            result, manifest = await parts.learner_group.train_and_publish(prepared.to_send)
        self._reports.submit(parts.flight_recorder.finish, result)
        self._metrics.extend(result.metrics)
        if not result.has_new_weights:
            text = f"the gradient of the batch after policy version {version} was NaN or infinite; it is left out"
            self._reports.submit(self._reporter.alert, "Update skipped", text=text)
            parts.buffer.discard_batch(prepared.groups, reason="skipped_step")
            return False
        parts.buffer.mark_trained(prepared.groups)
        self.outcome.policy_version = result.policy_version
        self.outcome.completion_tokens += prepared.batch.num_loss_tokens
        await self._synchronise(manifest)
        add_group_counts(self._metrics, parts.buffer)
        add_worker_counts(self._metrics, parts.pools)
        parts.restarts.add_metrics(self._metrics)
        if parts.pools.scoring is not None:
            self._metrics.add("scorer/num_scored_again", parts.scoring.num_scored_again)
        self._metrics.add("batch/num_skipped_prompts", parts.prompt_source.num_skipped)
        self._watch_for_hacking()
        # before the next step's groups are leased: a synchronous checkpoint so has nothing in flight
        self._state, self._unlogged = self._run_state(), prepared.groups
        if not self._config.controller.max_staleness:
            # since the weights were published, not since a wait began: an evaluation overlaps with the next rollouts
            self._generating_since = now()
        parts.buffer.version_published(result.policy_version)
        return True

    def _show_heat_maps(self, prepared: PreparedBatch, *, policy_version: int) -> None:
        algorithm, config = self._parts.algorithm, self._config
        if algorithm.figure is not None:
            count = config.tracker.completions_per_table
            panels = algorithm.heat_maps(prepared.groups, credit=prepared.credit, count=count)
            is_due = policy_version == 0 or _is_due(config.evaluation.every_updates, policy_version)
            self._reporter.show_heat_maps(panels, figure=algorithm.figure, policy_version=policy_version, is_due=is_due)

    def _watch_for_hacking(self) -> None:
        """Alert, once for each sign that appears, when the policy seems to exploit its reward."""
        action = self._config.guards.action
        if action == "off":
            return
        report = self._guards.observe(self._metrics.reduce(), update=self.outcome.policy_version)
        for name, value in report.metrics.items():
            self._metrics.add(name, value)
        for alarm in report.new_alarms:
            self._reports.submit(self._reporter.alert, "Possible reward hacking", text=alarm.message)
            if action == "stop":
                self.outcome.stopped_by = "guards"

    async def _synchronise(self, manifest: WeightsManifest) -> None:
        with self._phase("weight_sync"):
            report = await self._parts.weight_sync.update(manifest)
        self.outcome.canary_max_abs_diff = max(self.outcome.canary_max_abs_diff, report.canary_max_abs_diff or 0.0)
        add_sync(self._metrics, report, publish_seconds=manifest.publish_seconds)

    async def _evaluate(self, *, is_final: bool) -> EvaluationResult:
        with self._phase("evaluate"):
            result = await self._parts.evaluator.evaluate(policy_version=self.outcome.policy_version, is_final=is_final)
        self._metrics.extend(result.metrics())
        if self._state.policy_version == self.outcome.policy_version:
            evaluation = {metric.name: metric.value for metric in result.metrics()}
            self._state = replace(self._state, evaluation=evaluation)
        self._reports.submit(self._reporter.record_evaluation, result)
        return result

    async def _save_checkpoint(self) -> None:
        """Learner, exported policy and run state, all of the same policy version; written while training goes on."""
        async with self._parts.preemption.uninterrupted:
            with self._phase("checkpoint"):
                await self._checkpoints.start(self._state, after=self._reports.pending)
            self._saved_version = self._state.policy_version

    async def _save_what_is_new(self) -> None:
        """Before an early end: the line and the checkpoint of the last update."""
        if self._unlogged is not None:
            await self._log(self._unlogged)
        if self.outcome.policy_version > self._saved_version:
            await self._save_checkpoint()
        await self._checkpoints.finish()

    def _run_state(self) -> RunState:
        return RunState(
            policy_version=self.outcome.policy_version,
            cursor=self._parts.prompt_source.cursor,
            ledger=self._parts.buffer.state(),
            outstanding=self._parts.buffer.outstanding(),
            completion_tokens=self.outcome.completion_tokens,
            seconds=self._elapsed_seconds(),
            canary_max_abs_diff=self.outcome.canary_max_abs_diff,
            guards=self._guards.state(),
        )

    async def _log(self, groups: Sequence[ScoredGroup]) -> None:
        """One tracker call for everything since the last one; waits until the last one is done."""
        end = now()
        self._metrics.add("time/step_seconds", end - self._last_log_time)
        self._waits.end_step(self._metrics, pools=self._parts.pools)
        self._metrics.add("progress/policy_version", self.outcome.policy_version)
        self._metrics.add("progress/tokens", self.outcome.completion_tokens)
        self._metrics.add("progress/seconds", self._elapsed_seconds())
        self.outcome.bottleneck = bottleneck(self._metrics.reduce()) or self.outcome.bottleneck
        for seconds in self._checkpoints.take_seconds():
            self._metrics.add("checkpoint/write_seconds", seconds)
        self._last_log_time, self._unlogged = end, None
        await self._reports.finish()
        self._reports.submit(
            self._reporter.log_update, self.outcome.policy_version, metrics=self._metrics, groups=groups
        )
        self._metrics = self._reporter.new_metrics()

    def _enter_phase(self, name: str) -> None:
        self.stages.enter_phase(name)
        self.outcome.phase = name
        self._reports.submit(self._reporter.enter_phase, name)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._enter_phase(name)
        start = now()
        yield
        seconds = now() - start
        self._metrics.add(f"time/{name}_seconds", seconds)
        self._waits.add_phase(name, seconds=seconds)


def _is_due(every_updates: int | None, policy_version: int) -> bool:
    return every_updates is not None and policy_version % every_updates == 0
