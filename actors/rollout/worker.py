"""A rollout worker: prompts in, groups of trajectories out, weights received from the learner.

A plain class that hosts a VLLMEngine and the rollouter that asks it; made a Ray actor in system/runtime/placement.py.
Its methods are coroutines, so that groups overlap and come back one by one.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from actors.rollout.vllm_engine import EngineSettings, VLLMEngine
from system.config.machine import model_folder
from system.config.schema import RolloutConfig
from system.errors import EngineFailedError
from system.records import (
    FloatArray,
    Prompt,
    Sampling,
    TrajectoryGroup,
)
from system.rollouts.rollouter import Rollouter
from system.rollouts.single_turn import SingleTurnRollouter
from system.stack_signal import catch_stack_signal
from system.weights import store
from system.weights.canary import canary_difference
from system.weights.manifest import ReceiverStatus, WeightGroupSpec, WeightsManifest
from system.weights.staging import staged

NO_POLICY_VERSION = -1  # weights as they were on disk; nothing received yet


class RolloutWorker:
    """Generates groups of trajectories and receives weights, with one group rank for each engine process."""

    def __init__(
        self,
        *,
        config: RolloutConfig,
        model_path: str,
        revision: str | None,
        trust_remote_code: bool,
        run_seed: int,
        name: str = "rollout-0",
        rollouter: Rollouter | None = None,
        fetch: Callable[..., store.Buckets] = store.fetch,
    ) -> None:
        """`rollouter` None: one turn. `fetch(references, seconds=)` gives the buckets of a snapshot."""
        self.name = name
        self.num_ranks = config.tensor_parallel_size
        self.num_in_flight = 0  # groups
        self._policy_version = NO_POLICY_VERSION
        self._sync_timeout_seconds = 0.0
        self._fetch = fetch
        self._max_prompt_tokens = config.max_prompt_tokens
        self._max_completion_tokens = config.max_completion_tokens
        self._engine: VLLMEngine | None = None
        # one after another: a learner that died may have left an update under way when its successor sends the next
        self._updating = asyncio.Lock()
        self._rollouter = rollouter or SingleTurnRollouter()
        self._settings = EngineSettings(
            model_path=str(model_folder(model_path) or model_path),
            revision=revision,
            trust_remote_code=trust_remote_code,
            device=config.device,
            dtype=config.dtype,
            tensor_parallel_size=config.tensor_parallel_size,
            max_model_tokens=config.max_prompt_tokens + config.max_completion_tokens,
            max_sequences=config.max_sequences,
            kv_cache_gib=config.kv_cache_gib,
            gpu_memory_utilization=config.gpu_memory_utilization,
            enforce_eager=config.enforce_eager,
            num_threads=max(1, int(config.cpus_per_worker)),
            seed=run_seed,
            start_timeout_seconds=config.start_timeout_seconds,
            group_timeout_seconds=config.group_timeout_seconds,
            on_new_weights=config.on_new_weights,
        )

    @property
    def policy_version(self) -> int:
        """Version of the weights that were received last; NO_POLICY_VERSION before the first update."""
        return self._policy_version

    async def start(self) -> int:
        """Load the model and warm up; returns `num_ranks`. Raises EngineFailedError, DeadlineError."""
        catch_stack_signal()
        self._engine = await VLLMEngine.start(self._settings)
        try:
            await self._engine.set_policy_version(NO_POLICY_VERSION)
            await self._engine.warm_up()
        except BaseException:
            await self.shutdown()
            raise
        return self.num_ranks

    async def generate(self, prompt: Prompt, group_id: int, sampling: Sampling) -> TrajectoryGroup:
        """Draw `sampling.num_completions` trajectories for `prompt`; cancelling the call aborts them.

        The result depends on (weights, prompt, sampling, group_id) only. Raises EngineFailedError when the
        engine dies, ValueError for a prompt or a completion length beyond the configured ones.
        """
        if not 0 < len(prompt.token_ids) <= self._max_prompt_tokens:
            raise ValueError(
                f"prompt {prompt.prompt_id} has {len(prompt.token_ids)} tokens, "
                f"expected 1 to rollout.max_prompt_tokens = {self._max_prompt_tokens}"
            )
        if not 0 < sampling.max_tokens <= self._max_completion_tokens:
            raise ValueError(
                f"sampling.max_tokens is {sampling.max_tokens}, "
                f"expected 1 to rollout.max_completion_tokens = {self._max_completion_tokens}"
            )
        self.num_in_flight += 1
        try:
            trajectories = await self._rollouter.generate(
                prompt, group_id=group_id, sampling=sampling, engine=self._running_engine()
            )
        finally:
            self.num_in_flight -= 1
        return TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=trajectories)

    async def join_weight_group(self, spec: WeightGroupSpec, first_rank: int) -> None:
        """Join as ranks first_rank .. first_rank + num_ranks - 1, leaving the former group."""
        await self._running_engine().join_weight_group(spec, first_rank=first_rank)
        self._sync_timeout_seconds = spec.timeout_seconds

    async def receive_broadcast(self, manifest: WeightsManifest) -> ReceiverStatus:
        """Take part in one broadcast; groups in flight go on under the new weights.

        Raises WeightSyncError when it broke off: the engine then waits for `load_weights`.
        """
        start = time.monotonic()
        async with self._updating:
            pause_seconds = await self._running_engine().receive_broadcast(
                manifest, timeout_seconds=self._sync_timeout_seconds
            )
            return await self._status(manifest, start=start, pause_seconds=pause_seconds)

    async def load_weights(self, manifest: WeightsManifest, timeout_seconds: float) -> ReceiverStatus:
        """Load a snapshot from the store, alone; generation goes on until it has been fetched and checked.

        Raises SnapshotLostError when it died with the learner, WeightSyncError, EngineFailedError.
        """
        start = time.monotonic()
        engine = self._running_engine()
        async with self._updating:
            with ExitStack() as stack:
                buckets = self._fetch(manifest.references, seconds=timeout_seconds)
                path = await asyncio.to_thread(stack.enter_context, staged(buckets, manifest))
                pause_seconds = await engine.load_staged(manifest, path=path, timeout_seconds=timeout_seconds)
            return await self._status(manifest, start=start, pause_seconds=pause_seconds)

    async def _status(self, manifest: WeightsManifest, *, start: float, pause_seconds: float) -> ReceiverStatus:
        self._policy_version = manifest.policy_version
        difference = None
        if manifest.canary_logprobs is not None:
            logprobs = await self.canary_logprobs(manifest.canary_token_ids)
            difference = canary_difference(manifest.canary_logprobs, logprobs)
        return ReceiverStatus(
            receiver=self.name,
            policy_version=manifest.policy_version,
            digest=manifest.digest,
            dtype=self._settings.dtype,
            canary_max_abs_diff=difference,
            seconds=time.monotonic() - start,
            pause_seconds=pause_seconds,
            proved_fraction=await self._running_engine().proved_fraction(manifest),
        )

    async def canary_logprobs(self, token_ids: Sequence[int]) -> FloatArray:
        """float32[L-1]: log p(token t | tokens before t) under the present weights, temperature 1, nats.

        Raises ValueError when there are fewer than 2 tokens or no room for one more in the engine.
        """
        if not 2 <= len(token_ids) < self._settings.max_model_tokens:
            longest = self._settings.max_model_tokens - 1
            raise ValueError(f"the canary has {len(token_ids)} tokens, expected 2 to {longest}")
        logprobs = await self._running_engine().prompt_logprobs([int(token) for token in token_ids])
        return np.asarray(logprobs, dtype=np.float32)

    async def shutdown(self) -> None:
        """Stop the engine; no process is left."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await engine.shutdown()

    def _running_engine(self) -> VLLMEngine:
        if self._engine is None:
            raise EngineFailedError(f"{self.name} is not running")
        return self._engine
