"""From scored groups to the packed batch of one update, one batch ahead of the learner. Run by the controller.

    prepare_loop   group_buffer.next_batch ─> scores that are too old, again ─> credit, packing, statistics (thread)

| waits for                                        | who unblocks it                                  |
|--------------------------------------------------|--------------------------------------------------|
| room: no prepared batch waits for the learner    | `next`                                           |
| prompts_per_step scored groups                   | rollout tasks                                    |
| newer weights, where scores would be too old     | the update before                                |

With max_staleness=0 a batch can only be taken once the version it trains is published, so the loop works in step with
the learner by itself. With batch.portions above 1 it hands all parts of a batch but the last to the learner itself, as
soon as the version that they train is published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from system.algorithms.base import Algorithm, Credit
from system.config.schema import Config
from system.data.batching import pack_batch, pack_portion
from system.data.samples import make_batch_samples, require_fresh
from system.metrics import MetricSet
from system.records import OptimizerStep, ScoredGroup, TrainingBatch, TrainingSample
from system.reports.step_metrics import add_batch_metrics, add_group_metrics
from system.runtime.clock import now
from system.runtime.group_buffer import GroupBuffer
from system.runtime.group_scoring import GroupScoring
from system.runtime.scoring_state import ReplicaComparison
from system.runtime.worker_pool import WorkerPool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedBatch:
    """What one update trains, and the statistics of its groups."""

    policy_version: int  # that it trains; less when the batch before is skipped
    groups: list[ScoredGroup]
    credit: Credit
    batch: TrainingBatch
    metrics: MetricSet
    taken_at: float  # clock.now(), when the groups were complete
    rescored_at: float  # and their scores new enough
    remaining: TrainingBatch | None = None  # what the learner does not have yet, with the counts of all; None: all

    @property
    def to_send(self) -> TrainingBatch:
        """What completes the batch at the learner."""
        return self.remaining or self.batch


class BatchPreparation:
    """Takes batches from the buffer and prepares them, one ahead."""

    def __init__(
        self,
        *,
        config: Config,
        algorithm: Algorithm,
        buffer: GroupBuffer,
        scoring: GroupScoring,
        replicas: WorkerPool | None,
        new_metrics: Callable[[], MetricSet],
        accumulate: Callable[[Sequence[OptimizerStep]], Awaitable[None]],
    ) -> None:
        """`accumulate` adds the gradient of one portion, by rank, to what the learner will step on."""
        self._config = config
        self._algorithm = algorithm
        self._buffer = buffer
        self._scoring = scoring
        precisions = (config.rollout.dtype, config.scorer.dtype)
        self._comparison = ReplicaComparison(replicas, precisions=precisions) if replicas is not None else None
        self._new_metrics = new_metrics
        self._accumulate = accumulate
        self._prepared: asyncio.Queue[PreparedBatch] = asyncio.Queue()
        self._room = asyncio.Semaphore(1)
        self.is_preparing = False  # groups were taken, and are not a batch yet
        self.num_prepared = 0

    async def next(self) -> PreparedBatch:
        """Waits for the next batch; the one after it may then be prepared."""
        prepared = await self._prepared.get()
        self._room.release()
        return prepared

    async def prepare_loop(self) -> None:
        """Until cancelled."""
        while True:
            await self._room.acquire()
            prepared = None
            while prepared is None:
                prepared = await self._prepare()
                self.is_preparing = False
                self.num_prepared += 1
            self._prepared.put_nowait(prepared)

    async def _prepare(self) -> PreparedBatch | None:
        """None: nothing in these groups can be trained on; they are dropped."""
        if self._config.batch.portions > 1:
            return await self._prepare_in_portions()
        groups = await self._buffer.next_batch()
        self.is_preparing = True
        taken_at, version = now(), self._buffer.next_batch_version - 1
        metrics = self._new_metrics()
        groups, version = await self._with_new_scores(groups, version)
        await self._compare_replicas(metrics)
        rescored_at = now()
        credit, samples = await asyncio.to_thread(self._credit, groups, version)
        if not any(sample.loss_mask.any() for sample in samples):
            self._buffer.discard_batch(groups, reason="no_loss_tokens")
            return None
        batch = await asyncio.to_thread(pack_samples, samples, config=self._config)
        await asyncio.to_thread(self._add_metrics, metrics, groups, credit, batch, version)
        return PreparedBatch(
            policy_version=version,
            groups=groups,
            credit=credit,
            batch=batch,
            metrics=metrics,
            taken_at=taken_at,
            rescored_at=rescored_at,
        )

    async def _prepare_in_portions(self) -> PreparedBatch | None:
        """As `_prepare`, for the last portion; those before it have gone to the learner by then."""
        config, metrics = self._config.batch, self._new_metrics()
        size = -(-config.prompts_per_step // config.portions)
        groups: list[ScoredGroup] = []
        credits: list[Credit] = []
        sent: list[tuple[OptimizerStep, ...]] = []  # portions, each by rank
        while True:
            portion = await self._buffer.next_portion(num_groups=size, num_taken=len(groups))
            taken_at, self.is_preparing = now(), True
            version = await self._buffer.wait_until_next()  # the learner has to be done with the batch before
            portion, version = await self._with_new_scores(portion, version)
            groups += portion
            credit, samples = await asyncio.to_thread(self._credit, portion, version)
            credits.append(credit)
            has_loss = any(sample.loss_mask.any() for sample in samples)
            is_last = len(groups) == config.prompts_per_step
            if not has_loss and not (is_last and sent):
                if not is_last:
                    self.is_preparing = False
                    continue
                self._buffer.discard_batch(groups, reason="no_loss_tokens")
                return None
            steps = await asyncio.to_thread(self._pack_portion, samples)
            sent.append(steps)
            if is_last:
                break
            await self._accumulate(steps)
            self.is_preparing = False
        await self._compare_replicas(metrics)
        whole = Credit(
            groups=tuple(each for credit in credits for each in credit.groups),
            detail=tuple(each for credit in credits for each in credit.detail),
        )
        batch = _joined(sent, num_last=len(sent))
        await asyncio.to_thread(self._add_metrics, metrics, groups, whole, batch, version)
        return PreparedBatch(
            policy_version=version,
            groups=groups,
            credit=whole,
            batch=batch,
            metrics=metrics,
            taken_at=taken_at,
            rescored_at=taken_at,
            remaining=_joined(sent, num_last=1),
        )

    async def _with_new_scores(self, groups: list[ScoredGroup], version: int) -> tuple[list[ScoredGroup], int]:
        """The groups with scores that are new enough, and the version that they train."""
        if any(self._scoring.is_too_old(group, policy_version=version) for group in groups):
            version = await self._buffer.wait_until_next()
            groups = await asyncio.gather(
                *(self._scoring.bring_up_to_date(group, policy_version=version) for group in groups)
            )
        return groups, version

    async def _compare_replicas(self, metrics: MetricSet) -> None:
        difference = await self._comparison.measure() if self._comparison is not None else None
        if difference is not None:
            metrics.add("scorer/logprob_max_abs_diff_nats", difference)

    def _credit(self, groups: list[ScoredGroup], policy_version: int) -> tuple[Credit, list[TrainingSample]]:
        require_fresh(groups, policy_version=policy_version, max_staleness=self._config.controller.max_staleness)
        credit = self._algorithm.credit(groups)
        return credit, make_batch_samples(groups, credit=credit.groups)

    def _pack_portion(self, samples: list[TrainingSample]) -> tuple[OptimizerStep, ...]:
        config = self._config.batch
        return pack_portion(
            samples,
            num_ranks=self._config.learner.num_ranks,
            tokens_per_microbatch=config.tokens_per_microbatch,
            skip_zero_advantages=config.skip_zero_advantages,
        )

    def _add_metrics(
        self, metrics: MetricSet, groups: list[ScoredGroup], credit: Credit, batch: TrainingBatch, policy_version: int
    ) -> None:
        add_group_metrics(metrics, groups, credit=credit, policy_version=policy_version)
        self._algorithm.add_metrics(metrics, groups, credit=credit)
        add_batch_metrics(metrics, batch, num_groups=len(groups))


def pack_samples(samples: Sequence[TrainingSample], *, config: Config) -> TrainingBatch:
    """The batch of an update, as the configuration splits it. Raises ValueError as in `pack_batch`."""
    return pack_batch(
        samples,
        num_ranks=config.learner.num_ranks,
        tokens_per_microbatch=config.batch.tokens_per_microbatch,
        optimizer_steps=config.batch.optimizer_steps,
        skip_zero_advantages=config.batch.skip_zero_advantages,
    )


def _joined(portions: Sequence[Sequence[OptimizerStep]], *, num_last: int) -> TrainingBatch:
    """The last `num_last` of the portions, each by rank, as one step with the denominators of all of them."""
    num_loss_tokens = sum(portion[0].num_loss_tokens for portion in portions)
    num_sequences = sum(portion[0].num_sequences for portion in portions)
    return TrainingBatch(
        steps_by_rank=tuple(
            (
                OptimizerStep(
                    micro_batches=tuple(each for step in steps[-num_last:] for each in step.micro_batches),
                    num_loss_tokens=num_loss_tokens,
                    num_sequences=num_sequences,
                ),
            )
            for steps in zip(*portions, strict=True)
        ),
        num_loss_tokens=num_loss_tokens,
        num_sequences=num_sequences,
    )
