"""An environment of two turns: every answer is followed by the same words, then the policy writes again."""

import asyncio
from dataclasses import dataclass, replace

from system.records import Prompt, Sampling, Trajectory
from system.rollouts.rollouter import SamplingEngine, TrajectoryBuilder, group_seed


@dataclass(frozen=True)
class CheckedOnce:
    """prompt | turn | `words` | turn. Each turn draws with a seed of its own."""

    words: tuple[int, ...]

    async def generate(
        self, prompt: Prompt, *, group_id: int, sampling: Sampling, engine: SamplingEngine
    ) -> tuple[Trajectory, ...]:
        one = replace(sampling, num_completions=1)
        first_seed = group_seed(sampling.seed, group_id=group_id)

        async def trajectory(index: int) -> Trajectory:
            builder = TrajectoryBuilder(prompt.token_ids)
            for turn in range(2):
                if turn:
                    builder.append_environment(self.words)
                seed = first_seed + turn * sampling.num_completions + index
                [sampled] = await engine.sample(builder.token_ids, sampling=one, seed=seed)
                builder.append_sampled(sampled)
            return builder.build(index=index, tokenizer=engine.tokenizer)

        return tuple(await asyncio.gather(*(trajectory(index) for index in range(sampling.num_completions))))
