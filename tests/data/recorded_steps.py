"""One update of the demo's configuration for tests: two groups of two completions, credited and packed as in a run."""

from dataclasses import replace

import numpy as np

from system.commands.run_inputs import make_algorithm
from system.config.schema import Config
from system.data.samples import make_batch_samples
from system.data.step_files import RecordedStep
from system.data.tasks import make_task
from system.records import FloatArray, RewardTerm, ScoredGroup
from system.runtime.batch_preparation import pack_samples
from tests.trajectories import group_of, single_turn

# two right and two wrong answers to 2; token 0 is no real token, but every model knows it
_TEXTS = (("1+1=2\n#2", "1+1=3\n#3"), ("#2", "1+1=11\n#11"))
_TOKENS = (((5, 6, 7, 8), (5, 6, 9)), ((7, 8), (9, 9, 9, 6, 5)))
_PROMPT = (3, 4)


def make_step(
    config: Config, *, policy_version: int = 0, logprobs: dict[tuple[int, int], FloatArray] | None = None
) -> RecordedStep:
    """`logprobs` of each (group, completion); without them some that are no round numbers."""
    random = np.random.default_rng(0)
    groups = []
    for group_id, (texts, tokens) in enumerate(zip(_TEXTS, _TOKENS, strict=True)):
        trajectories = tuple(
            single_turn(
                ids,
                prompt=_PROMPT,
                index=index,
                text=text,
                logprobs=(
                    -random.exponential(size=len(ids)) if logprobs is None else logprobs[group_id, index]
                ).tolist(),
                versions=[policy_version],
            )
            for index, (text, ids) in enumerate(zip(texts, tokens, strict=True))
        )
        terms = tuple((verdict(value=1.0 - index),) for index in range(len(trajectories)))
        groups.append(ScoredGroup(group=group_of(*trajectories, group_id=7 + group_id), terms=terms))
    return credited(groups, config=config, policy_version=policy_version)


def token_ids_of(group: int, completion: int) -> list[int]:
    """Prompt and completion."""
    return [*_PROMPT, *_TOKENS[group][completion]]


def num_prompt_tokens() -> int:
    return len(_PROMPT)


def verdict(*, value: float) -> RewardTerm:
    return RewardTerm(
        scorer="verifier",
        value=value,
        status="ok",
        reason="right" if value else "wrong",
        policy_version=-1,
        seconds=0.1,
    )


def credited(groups: list[ScoredGroup], *, config: Config, policy_version: int) -> RecordedStep:
    credit = make_algorithm(config, task=make_task(config.task)).credit(groups)
    return RecordedStep(
        policy_version=policy_version,
        groups=tuple(groups),
        credit=credit.groups,
        batch=pack_samples(make_batch_samples(groups, credit=credit.groups), config=config),
    )


def with_term(step: RecordedStep, term: RewardTerm, *, group: int, completion: int) -> RecordedStep:
    """The same step, one term of it another one; its credit stays."""
    rows = [list(row) for row in step.groups[group].terms]
    rows[completion] = [term]
    changed = replace(step.groups[group], terms=tuple(tuple(row) for row in rows))
    return replace(step, groups=(*step.groups[:group], changed, *step.groups[group + 1 :]))
