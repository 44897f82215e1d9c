"""Trajectories as rollouters make them: what was sampled, by whom, and what was not."""

import asyncio
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from system.records import Prompt, Sampling, Trajectory
from system.rollouts.rollouter import SampledTokens, TrajectoryBuilder, group_seed
from system.rollouts.single_turn import SingleTurnRollouter
from tests.rollouts.checked_once import CheckedOnce
from tests.trajectories import LetterTokenizer, two_turns

PROMPT = Prompt(
    prompt_id="p", token_ids=np.array([3, 4], np.int32), text="1+1:", reference_answer="2", task="gsm8k_chains"
)
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, num_completions=3, seed=11)


@dataclass
class FakeEngine:
    """Continues [x, ..., y] by y + 1 and the number of the draw; notes what it was asked."""

    tokenizer: LetterTokenizer = field(default_factory=LetterTokenizer)
    calls: list[tuple[list[int], int]] = field(default_factory=list)

    async def sample(self, token_ids: list[int], *, sampling: Sampling, seed: int) -> list[SampledTokens]:
        self.calls.append((token_ids, seed))
        return [
            SampledTokens(
                token_ids=[token_ids[-1] + 1, index],
                logprobs=[-0.5, -0.25 * index],
                version_starts=[0, 1],
                versions=[7, 8],
                finish_reason="length",
            )
            for index in range(sampling.num_completions if sampling.temperature else 1)
        ]


def generate(engine: FakeEngine, sampling: Sampling) -> tuple[Trajectory, ...]:
    return asyncio.run(SingleTurnRollouter().generate(PROMPT, group_id=5, sampling=sampling, engine=engine))


def test_a_single_turn_is_the_prompt_and_then_what_was_sampled() -> None:
    engine = FakeEngine()
    trajectories = generate(engine, SAMPLING)
    assert engine.calls == [([3, 4], group_seed(11, group_id=5))]
    assert [each.index for each in trajectories] == [0, 1, 2]
    last = trajectories[2]
    assert last.token_ids.tolist() == [3, 4, 5, 2]
    assert last.token_ids.dtype == np.int32
    assert last.is_sampled.tolist() == [False, False, True, True]
    assert last.logprobs.tolist() == [0.0, 0.0, -0.5, -0.5]
    assert last.sampled_policy_versions.tolist() == [7, 8]
    assert (last.text, last.finish_reason, last.num_turns) == ("fc", "length", 1)


def test_a_greedy_answer_is_drawn_once_and_stands_in_every_trajectory() -> None:
    greedy = generate(FakeEngine(), replace(SAMPLING, temperature=0.0))
    assert [(each.index, each.token_ids.tolist()) for each in greedy] == [(n, [3, 4, 5, 0]) for n in range(3)]


def test_an_environment_speaks_between_turns() -> None:
    engine = FakeEngine()
    rollouter = CheckedOnce(words=(8, 9))
    last = asyncio.run(rollouter.generate(PROMPT, group_id=5, sampling=SAMPLING, engine=engine))[2]
    # the fake continues [.., y] by y + 1 and 0; the second turn reads the first and the words as they stand
    assert last.token_ids.tolist() == [3, 4, 5, 0, 8, 9, 10, 0]
    assert last.turns == [(2, 4), (6, 8)]
    first_seed = group_seed(11, group_id=5)
    assert sorted(seed for _, seed in engine.calls) == [first_seed + number for number in range(6)]
    assert (last.text, last.sampled_policy_versions.tolist()) == ("fa\nka", [7, 8, 7, 8])


def test_turns_of_policy_and_environment_are_kept_apart() -> None:
    def sampled(token_ids: list[int], logprobs: list[float], versions: list[int]) -> SampledTokens:
        return SampledTokens(
            token_ids=token_ids,
            logprobs=logprobs,
            version_starts=list(range(len(versions))),
            versions=versions,
            finish_reason="stop",
        )

    builder = TrajectoryBuilder(np.array([3, 4], np.int32))
    builder.append_sampled(sampled([5, 6], [-0.5, -0.25], [4, 5]))
    assert builder.token_ids == [3, 4, 5, 6]
    builder.append_environment([7, 8, 9])
    assert builder.token_ids == [3, 4, 5, 6, 7, 8, 9]  # what the policy reads next, as it stands
    builder.append_sampled(sampled([10, 2], [-1.0, -0.125], [6]))
    builder.append_environment([11])
    built, expected = builder.build(index=0, tokenizer=LetterTokenizer()), two_turns()
    for name in ("token_ids", "is_sampled", "logprobs"):
        np.testing.assert_array_equal(getattr(built, name), getattr(expected, name))
    np.testing.assert_array_equal(built.policy_versions.starts, expected.policy_versions.starts)
    np.testing.assert_array_equal(built.policy_versions.versions, expected.policy_versions.versions)
    assert (built.text, built.num_turns, built.turns) == (expected.text, 2, [(2, 4), (7, 9)])


def test_what_a_trajectory_says_of_itself_counts_sampled_tokens_alone() -> None:
    trajectory = two_turns()
    assert (trajectory.num_prompt_tokens, trajectory.num_sampled, trajectory.num_turns) == (2, 4, 2)
    assert trajectory.sampled_token_ids.tolist() == [5, 6, 10, 2]
    assert trajectory.sampled_policy_versions.tolist() == [4, 5, 6, 6]
    assert trajectory.min_policy_version == 4  # not the -1 of prompt and environment
    spread = trajectory.at_sampled(np.array([1.0, 2.0, 3.0, 4.0], np.float32))
    assert spread.tolist() == [0, 0, 1, 2, 0, 0, 0, 3, 4, 0]


def test_a_first_token_that_is_sampled_and_unequal_lengths_are_refused() -> None:
    whole = two_turns()
    fields = {name: getattr(whole, name) for name in whole.__slots__}
    with pytest.raises(ValueError, match="nothing predicts it"):
        Trajectory(**fields | {"is_sampled": np.ones(10, np.bool_)})
    with pytest.raises(ValueError, match=r"must have the shape of token_ids \(10,\)"):
        Trajectory(**fields | {"logprobs": np.zeros(9, np.float32)})


def test_group_seeds_are_fixed_for_ever_and_leave_room_for_the_completions() -> None:
    assert group_seed(0, group_id=0) == 1464411287244747018  # a change would change every recorded run
    seeds = {group_seed(seed, group_id=group_id) for seed in range(20) for group_id in range(500)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**62 for seed in seeds)
    ordered = sorted(seeds)
    assert min(np.diff(np.asarray(ordered, dtype=np.float64))) > 10_000  # groups share no completion's seed
