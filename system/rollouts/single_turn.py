"""One prompt, one answer: the rollouter of every task that has no environment."""

from system.records import Prompt, Sampling, Trajectory
from system.rollouts.rollouter import SamplingEngine, TrajectoryBuilder, group_seed


class SingleTurnRollouter:
    """Trajectories of one turn: the prompt, then what the policy writes."""

    async def generate(
        self, prompt: Prompt, *, group_id: int, sampling: Sampling, engine: SamplingEngine
    ) -> tuple[Trajectory, ...]:
        seed = group_seed(sampling.seed, group_id=group_id)
        drawn = await engine.sample(prompt.token_ids.tolist(), sampling=sampling, seed=seed)
        if sampling.temperature == 0:
            drawn = drawn * sampling.num_completions
        trajectories = []
        for index, sampled in enumerate(drawn):
            builder = TrajectoryBuilder(prompt.token_ids)
            builder.append_sampled(sampled)
            trajectories.append(builder.build(index=index, tokenizer=engine.tokenizer))
        return tuple(trajectories)
