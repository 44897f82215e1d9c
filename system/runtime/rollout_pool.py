"""The rollout workers: groups go to the one with the least to do. The controller and the evaluator call it."""

from system.records import CompletionGroup, Prompt, Sampling
from system.runtime.worker_pool import WorkerPool


class RolloutPool(WorkerPool):
    """vLLM engines; a group whose worker died is the caller's to generate again."""

    kind = "rollout worker"
    section = "rollout"

    async def generate(self, prompt: Prompt, *, group_id: int, sampling: Sampling) -> CompletionGroup:
        """One group of completions. Raises WorkerDiedError, DeadlineError."""
        group: CompletionGroup = await self._call(
            "generate", prompt, group_id, sampling, what=f"generate group {group_id}"
        )
        return group
