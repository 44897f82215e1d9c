"""A thin class around vLLM's AsyncLLM: generate, score a prompt, receive weights, stop.

Used by actors/rollout/worker.py, which sees no vLLM types. vLLM is imported when an engine starts,
after the environment that it reads at import time is set.

An engine works, is paused between two weights, or has failed for good. Paused: a broadcast broke off half way; it
generates again once a whole snapshot has been loaded. Failed: its processes died, or a load failed; every call
that is pending and every later one raises EngineFailedError, so that the owner can be replaced.
"""

import asyncio
import gc
import multiprocessing
import os
import time
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from actors.rollout.engine_log import EngineLog
from system.config.schema import OnNewWeights
from system.errors import ConfigError, CredenceError, DeadlineError, EngineFailedError, WeightSyncError
from system.records import Sampling
from system.rollouts.rollouter import SampledTokens
from system.weights.held import HeldProof
from system.weights.manifest import WeightGroupSpec, WeightsManifest, to_plain

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs, CompletionOutput, RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_LIVENESS_SECONDS = 1.0
_CONTROL_SECONDS = 60.0  # pause, resume and the like: they wait for one engine step at most
_SHUTDOWN_SECONDS = 5.0  # then the engine's processes are killed
_FORGETTING_SCHEDULERS = {
    "cpu": "actors.rollout.vllm_scheduler.PrefixForgettingScheduler",
    "cuda": "actors.rollout.vllm_scheduler.PrefixForgettingAsyncScheduler",
}

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What an engine is built from. Lengths in tokens."""

    model_path: str
    revision: str | None
    trust_remote_code: bool
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    tensor_parallel_size: int
    max_model_tokens: int  # prompt + completion
    max_sequences: int
    kv_cache_gib: float  # CPU only
    gpu_memory_utilization: float  # GPU only
    enforce_eager: bool
    num_threads: int  # CPU threads of one engine process
    seed: int
    start_timeout_seconds: float
    group_timeout_seconds: float  # a group that runs ends by then
    on_new_weights: OnNewWeights
    worker_extension: str = "actors.rollout.vllm_weight_receiver.WeightReceiverExtension"


def set_engine_environment(settings: EngineSettings) -> None:
    """Set what vLLM reads from the environment of this process; must run before vLLM is imported.

    No usage reports, no look-ups on the hub for a local folder; errors only, unless VLLM_LOGGING_LEVEL
    is set (vLLM warns a dozen times at each start, and at each update about layers that own no weights).
    On CPU no pinning of threads to cores, which would put two engines on the same cores.
    """
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["DO_NOT_TRACK"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if Path(settings.model_path).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["CREDENCE_ENGINE_OWNER_PID"] = str(os.getpid())  # read in actors/rollout/vllm_weight_receiver.py
    if settings.device == "cpu":
        # With it, one process hop a step less: without it vLLM insists on a worker process of its own on CPU.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["OMP_NUM_THREADS"] = str(settings.num_threads)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # Set by kv_cache_memory_bytes instead: the variable knows whole GiB only and would win.
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)


def engine_arguments(settings: EngineSettings) -> "AsyncEngineArgs":
    """vLLM's arguments for `settings`, with the reasons for those that are not plain."""
    from vllm import AsyncEngineArgs
    from vllm.config import WeightTransferConfig

    from actors.rollout.vllm_weight_receiver import BACKEND_NAME

    on_cpu = settings.device == "cpu"
    keeps = settings.on_new_weights == "keep"
    return AsyncEngineArgs(
        model=settings.model_path,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        dtype=settings.dtype,
        tensor_parallel_size=settings.tensor_parallel_size,
        distributed_executor_backend="uni" if settings.tensor_parallel_size == 1 else "mp",
        max_model_len=settings.max_model_tokens,
        max_num_seqs=settings.max_sequences,
        # A chunk of a prompt draws a token that vLLM takes back by rewinding the request's generator,
        # which CPU generators cannot do; whole prompts also make results independent of the batch.
        enable_chunked_prefill=False if on_cpu else None,
        max_num_batched_tokens=max(settings.max_model_tokens, settings.max_sequences, 4096) if on_cpu else None,
        kv_cache_memory_bytes=int(settings.kv_cache_gib * 2**30) if on_cpu else None,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        enforce_eager=settings.enforce_eager,
        seed=settings.seed,
        # log softmax(z / temperature) of the sampled token, after all processing: what it was drawn from.
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        enable_log_requests=False,
        scheduler_cls=_FORGETTING_SCHEDULERS[settings.device] if keeps else None,
        async_scheduling=True if keeps and not on_cpu else None,  # what vLLM itself chooses there
        weight_transfer_config=WeightTransferConfig(backend=BACKEND_NAME),
        worker_extension_cls=settings.worker_extension,
        use_tqdm_on_load=False,
    )


class VLLMEngine:
    """One vLLM engine with its processes. Build it with `await VLLMEngine.start(settings)`."""

    def __init__(self, llm: "AsyncLLM", *, settings: EngineSettings) -> None:
        self._llm = llm
        self._log = EngineLog()  # from here on: what a former engine of this process wrote is no cause
        self._settings = settings
        self._num_requests = 0
        self._cache_salt = 0  # requests share keys and values with those of the same salt only
        self._proof = HeldProof()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._liveness_task = asyncio.create_task(self._liveness_loop())

    @classmethod
    async def start(cls, settings: EngineSettings) -> "VLLMEngine":
        """Load the model and start the engine's processes.

        Raises DeadlineError after `start_timeout_seconds`, EngineFailedError when vLLM refuses or dies.
        """
        set_engine_environment(settings)
        built: list[AsyncLLM] = []
        log = EngineLog()
        former_children = set(multiprocessing.active_children())
        seconds = settings.start_timeout_seconds
        try:
            # A thread of its own: the constructor waits for the engine's processes without end.
            await asyncio.wait_for(asyncio.to_thread(_build_llm, settings, into=built), seconds)
        except TimeoutError as error:
            for process in set(multiprocessing.active_children()) - former_children:
                process.kill()
            raise DeadlineError("the rollout engine", what="start", seconds=seconds) from error
        except (RuntimeError, ValueError, OSError) as error:
            cause = log.cause() or error
            raise EngineFailedError(f"vLLM could not start with {settings.model_path}: {cause}") from error
        return cls(built.pop(), settings=settings)

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer that belongs to the model."""
        return self._llm.get_tokenizer()

    async def sample(self, token_ids: list[int], *, sampling: Sampling, seed: int) -> list[SampledTokens]:
        """Draw `sampling.num_completions` continuations of `token_ids`, number i with seed `seed + i`.

        Greedy continuations are all the same: only one is returned. Cancelling the call aborts the
        requests in the engine. Raises EngineFailedError.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # One request with n > 1 costs about a tenth less than n requests.
        params = SamplingParams(
            n=sampling.num_completions if sampling.temperature > 0 else 1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=seed,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._generate(token_ids, params=params)
        return [_sampled_tokens(completion) for completion in output.outputs]

    async def warm_up(self) -> None:
        """Draw a few tokens, because vLLM compiles its sampling code at first use (seconds)."""
        sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=2, num_completions=2, seed=0)
        await self.sample([0], sampling=sampling, seed=0)

    async def prompt_logprobs(self, token_ids: list[int]) -> list[float]:
        """log p(token t | tokens before t), t = 1 .. L-1, in nats at temperature 1. L < max_model_tokens."""
        from vllm import SamplingParams
        from vllm.logprobs import FlatLogprobs

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, flat_logprobs=True, detokenize=False)
        output = await self._generate(token_ids, params=params)
        assert isinstance(output.prompt_logprobs, FlatLogprobs)
        return output.prompt_logprobs.logprobs

    async def join_weight_group(self, spec: WeightGroupSpec, *, first_rank: int) -> None:
        """Make the engine's worker processes ranks first_rank .. of the weight group."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        request = WeightTransferInitRequest(init_info=asdict(spec) | {"first_rank": first_rank})
        await self._control(
            self._llm.init_weight_transfer_engine(request),
            what=f"join weight group {spec.group_name}",
            seconds=spec.timeout_seconds + _CONTROL_SECONDS,
        )

    async def receive_broadcast(self, manifest: WeightsManifest, *, timeout_seconds: float) -> float:
        """Pause, take part in one broadcast, load, resume; returns the seconds of the pause.

        What becomes of requests in flight is rollout.on_new_weights. recompute: their keys and values are dropped
        and computed again, so that every later token is drawn from the new policy alone; keep: they go on with the
        keys that they have; finish: the pause begins when they have ended. No request that starts later reads a
        key of old weights: the prefix cache is dropped in all three. After a WeightSyncError the engine stays paused
        until `load_staged` has repaired it.
        """
        return await self._update(manifest, staged_at=None, timeout_seconds=timeout_seconds)

    async def load_staged(self, manifest: WeightsManifest, *, path: str, timeout_seconds: float) -> float:
        """As `receive_broadcast`, from the file where the snapshot was staged; nothing is waited for but the load."""
        try:
            return await self._update(manifest, staged_at=path, timeout_seconds=timeout_seconds)
        except WeightSyncError as error:
            self._fail(f"a weight update broke off: {error}")
            raise

    async def _update(self, manifest: WeightsManifest, *, staged_at: str | None, timeout_seconds: float) -> float:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        what = f"receive weights of policy version {manifest.policy_version}"
        seconds = timeout_seconds + _CONTROL_SECONDS
        request = WeightTransferUpdateRequest(update_info={"manifest": to_plain(manifest), "staged_at": staged_at})
        try:
            start = await self._pause(what=what)
            await self._control(self._llm.start_weight_update(), what=what, seconds=seconds)
            await self._control(self._llm.update_weights(request), what=what, seconds=seconds)
            finish = self._llm.finish_weight_update(weight_version=str(manifest.policy_version))
            await self._control(finish, what=what, seconds=seconds)
            received = await self._control(self._llm.collective_rpc("received_weights"), what=what, seconds=seconds)
            _check_received(received, manifest)
            if self._settings.on_new_weights == "keep":
                await self._control(self._llm.reset_prefix_cache(), what=what, seconds=seconds)
            self._cache_salt += 1
            await self._control(self._llm.resume_generation(), what=what, seconds=seconds)
        except (DeadlineError, asyncio.CancelledError) as error:
            self._fail(f"a weight update broke off: {error}")
            raise
        return time.monotonic() - start

    async def _pause(self, *, what: str) -> float:
        """Stop generation as rollout.on_new_weights wants it; the time when it began to stand still."""
        # one of its own for what comes while the engine pauses: it may run under either weights
        self._cache_salt += 1
        start = time.monotonic()
        if self._settings.on_new_weights == "finish":
            wait = self._llm.pause_generation(mode="wait", clear_cache=True)
            await self._control(wait, what=what, seconds=self._settings.group_timeout_seconds + _CONTROL_SECONDS)
        else:
            clears = self._settings.on_new_weights == "recompute"
            keep = self._llm.pause_generation(mode="keep", clear_cache=clears)
            await self._control(keep, what=what, seconds=_CONTROL_SECONDS)
        return start

    async def proved_fraction(self, manifest: WeightsManifest) -> float:
        """Share of the snapshot's bytes that the engine's processes hold as they should; see system/weights/held.py.

        Raises WeightSyncError when they hold something else.
        """
        what = f"prove policy version {manifest.policy_version}"
        answers = await self._control(self._llm.collective_rpc("held_weights"), what=what, seconds=_CONTROL_SECONDS)
        return self._proof.proved_fraction([held for held, _ in answers], manifest, fused=answers[0][1])

    async def set_policy_version(self, policy_version: int) -> None:
        """Label the tokens that follow with a policy version without changing the weights."""
        await self._control(
            self._llm.update_weight_version(str(policy_version)), what="label weights", seconds=_CONTROL_SECONDS
        )

    async def shutdown(self) -> None:
        """Stop the engine's processes; pending calls raise EngineFailedError."""
        self._liveness_task.cancel()
        self._fail("it was shut down")
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()  # else it reports the end of the processes as an error
        await asyncio.to_thread(self._llm.shutdown, timeout=_SHUTDOWN_SECONDS)
        multiprocessing.active_children()  # reaps the ended processes
        del self._llm
        gc.collect()  # its __del__ would fail later, in an interpreter that is going down

    async def _generate(self, token_ids: list[int], *, params: "SamplingParams") -> "RequestOutput":
        from vllm.inputs import TokensPrompt

        self._num_requests += 1
        prompt = TokensPrompt(prompt_token_ids=token_ids, cache_salt=str(self._cache_salt))
        return await self._or_failure(self._final_output(prompt, params, str(self._num_requests)))

    async def _final_output(self, prompt: Any, params: "SamplingParams", request_id: str) -> "RequestOutput":
        final = None
        async for output in self._llm.generate(prompt, params, request_id):
            final = output
        if final is None:
            raise EngineFailedError("the engine ended a request without an output")
        return final

    async def _control(self, call: Coroutine[Any, Any, Result], *, what: str, seconds: float) -> Result:
        """A control call with a deadline; errors of the engine's processes become WeightSyncError."""
        try:
            return await asyncio.wait_for(self._or_failure(call), seconds)
        except TimeoutError as error:
            raise DeadlineError("the rollout engine", what=what, seconds=seconds) from error
        except CredenceError:
            raise
        except Exception as error:  # vLLM hands errors of its processes over as bare Exception
            raise WeightSyncError(f"the rollout engine failed to {what}: {error}") from error

    async def _or_failure(self, call: Coroutine[Any, Any, Result]) -> Result:
        """The result of `call`, or EngineFailedError as soon as the engine has failed."""
        task = asyncio.ensure_future(call)
        either: set[asyncio.Future[Any]] = {task, self._failure}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task}, timeout=_CONTROL_SECONDS)  # vLLM sends the abort while it unwinds
            raise
        if task.done():
            return await self._without_vllm_errors(task)
        task.cancel()
        raise EngineFailedError(f"the rollout engine failed: {self._failure.exception()}")

    async def _without_vllm_errors(self, task: "asyncio.Future[Result]") -> Result:
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        try:
            return await task
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineFailedError(f"the rollout engine failed: {self._log.cause() or repr(error)}") from error

    async def _liveness_loop(self) -> None:
        """vLLM notices the death of its processes; this makes sure that every waiting call does too."""
        while not self._failure.done():
            if self._llm.errored:
                self._fail(f"its processes died: {self._log.cause() or 'they left no error'}")
            await asyncio.sleep(_LIVENESS_SECONDS)

    def _fail(self, reason: str) -> None:
        if not self._failure.done():
            self._failure.set_exception(EngineFailedError(reason))
            self._failure.exception()  # marks it as retrieved: nobody may be waiting


def _sampled_tokens(completion: "CompletionOutput") -> SampledTokens:
    from vllm.logprobs import FlatLogprobs

    assert isinstance(completion.logprobs, FlatLogprobs)
    assert completion.weight_versions is not None
    if completion.finish_reason not in ("stop", "length"):
        raise EngineFailedError(f"the engine ended a completion with {completion.finish_reason!r}")
    return SampledTokens(
        token_ids=list(completion.token_ids),
        logprobs=completion.logprobs.logprobs,
        version_starts=[span.start for span in completion.weight_versions],
        versions=[int(span.version) for span in completion.weight_versions],
        finish_reason=completion.finish_reason,
    )


def _build_llm(settings: EngineSettings, *, into: list["AsyncLLM"]) -> None:
    """Not returned, because the thread pool would keep the result alive after `shutdown`."""
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    if current_platform.device_type != settings.device:
        raise ConfigError(
            "rollout.device",
            given=settings.device,
            expected=f"{current_platform.device_type or 'none'}, which the vLLM of this node is built for or finds",
            fix="the other vLLM package (deploy/requirements), or rollout.device",
        )
    into.append(AsyncLLM.from_engine_args(engine_arguments(settings)))


def _check_received(received: list[tuple[int, str] | None], manifest: WeightsManifest) -> None:
    """Raises WeightSyncError unless every worker process of the engine holds the snapshot."""
    wanted = (manifest.policy_version, manifest.digest)
    if any(answer is None or tuple(answer) != wanted for answer in received):
        raise WeightSyncError(f"the engine's processes hold {sorted(map(str, received))}, expected {wanted}")
