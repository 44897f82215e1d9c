"""vLLM's schedulers, made to forget finished prefixes while requests run: needed where these keep their keys.

vLLM imports this module in the engine's core process, by the name that actors/rollout/vllm_engine.py gives it. Its own
schedulers refuse to clear the prefix cache as long as a request holds a block of it.
"""

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler


class PrefixForgettingScheduler(Scheduler):
    """`reset_prefix_cache` without running requests: no later request finds a block that was computed before.

    The running ones keep their blocks. Those that they fill later are found under their own cache salt alone.
    """

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        if reset_running_requests:
            return super().reset_prefix_cache(reset_running_requests, reset_connector)
        self.kv_cache_manager.evict_blocks(set(range(len(self.kv_cache_manager.block_pool.blocks))))
        return True


class PrefixForgettingAsyncScheduler(PrefixForgettingScheduler, AsyncScheduler):
    """The same for engines that schedule a step ahead (CUDA)."""
