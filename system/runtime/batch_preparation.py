"""From scored groups to the packed batch of one update, one batch ahead of the learner. Run by the controller.

    prepare_loop   group_buffer.next_batch ─> scores that are too old, again ─> credit, packing, statistics (thread)

| waits for                                        | who unblocks it                                  |
|--------------------------------------------------|--------------------------------------------------|
| room: no prepared batch waits for the learner    | `next`                                           |
| prompts_per_step scored groups                   | rollout tasks                                    |
| newer weights, where scores would be too old     | the update before                                |

With max_staleness=0 a batch can only be taken once the version it trains is published, so the loop works in step with
the learner by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from system.algorithms.base import Algorithm, Credit
from system.config.schema import Config
from system.data.batching import pack_batch
from system.data.samples import make_samples
from system.metrics import MetricSet
from system.records import ScoredGroup, TrainingBatch, TrainingSample
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
    ) -> None:
        self._config = config
        self._algorithm = algorithm
        self._buffer = buffer
        self._scoring = scoring
        precisions = (config.rollout.dtype, config.scorer.dtype)
        self._comparison = ReplicaComparison(replicas, precisions=precisions) if replicas is not None else None
        self._new_metrics = new_metrics
        self._prepared: asyncio.Queue[PreparedBatch] = asyncio.Queue()
        self._room = asyncio.Semaphore(1)

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
            self._prepared.put_nowait(prepared)

    async def _prepare(self) -> PreparedBatch | None:
        """None: nothing in these groups can be trained on; they are dropped."""
        groups = await self._buffer.next_batch()
        taken_at, version = now(), self._buffer.next_batch_version - 1
        metrics = self._new_metrics()
        if any(self._scoring.is_too_old(group, policy_version=version) for group in groups):
            version = await self._buffer.wait_until_next()
            groups = await asyncio.gather(
                *(self._scoring.bring_up_to_date(group, policy_version=version) for group in groups)
            )
        difference = await self._comparison.measure() if self._comparison is not None else None
        if difference is not None:
            metrics.add("scorer/logprob_max_abs_diff_nats", difference)
        rescored_at = now()
        credit, samples = await asyncio.to_thread(self._credit, groups)
        if not any(sample.loss_mask.any() for sample in samples):
            self._buffer.discard_batch(groups, reason="no_loss_tokens")
            return None
        batch = await asyncio.to_thread(self._pack, samples)
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

    def _credit(self, groups: list[ScoredGroup]) -> tuple[Credit, list[TrainingSample]]:
        credit = self._algorithm.credit(groups)
        by_group = (make_samples(group, credit=own) for group, own in zip(groups, credit.groups, strict=True))
        return credit, [sample for samples in by_group for sample in samples]

    def _pack(self, samples: list[TrainingSample]) -> TrainingBatch:
        config = self._config.batch
        return pack_batch(
            samples,
            num_ranks=self._config.learner.num_ranks,
            tokens_per_microbatch=config.tokens_per_microbatch,
            optimizer_steps=config.optimizer_steps,
            skip_zero_advantages=config.skip_zero_advantages,
        )

    def _add_metrics(
        self, metrics: MetricSet, groups: list[ScoredGroup], credit: Credit, batch: TrainingBatch, policy_version: int
    ) -> None:
        add_group_metrics(metrics, groups, credit=credit, policy_version=policy_version)
        self._algorithm.add_metrics(metrics, groups, credit=credit)
        add_batch_metrics(metrics, batch, num_groups=len(groups))
