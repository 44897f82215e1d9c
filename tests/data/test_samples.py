from dataclasses import replace

import numpy as np
import pytest

from system.config.schema import BeliefConfig
from system.data.samples import make_belief_samples, make_environment_samples, make_samples, staleness
from system.data.tasks.triplets import TripletsTask
from system.records import BeliefTrace, Prompt, RewardTerm, ScoredGroup, Trajectory, TrajectoryGroup
from tests.trajectories import single_turn


def completion(index: int, *, token_ids: list[int], version: int = 4, text: str = "") -> Trajectory:
    logprobs = np.linspace(-1.0, -0.5, len(token_ids)).tolist()
    return single_turn(token_ids, prompt=[5, 6], index=index, text=text, logprobs=logprobs, versions=[version])


def term(value: float, *, status: str = "ok") -> RewardTerm:
    return RewardTerm(scorer="verifier", value=value, status=status, reason="right", policy_version=-1, seconds=0.0)  # type: ignore[arg-type]


def group(*rows: tuple[Trajectory, RewardTerm], reference_answer: str = "1") -> ScoredGroup:
    trajectories = TrajectoryGroup(
        group_id=7,
        prompt=Prompt(
            prompt_id="p",
            token_ids=np.array([5, 6], np.int32),
            text="",
            reference_answer=reference_answer,
            task="gsm8k_chains",
        ),
        trajectories=tuple(row[0] for row in rows),
    )
    return ScoredGroup(group=trajectories, terms=tuple((row[1],) for row in rows))


def test_advantage_is_written_over_completion_tokens_only() -> None:
    scored = make_samples(
        group((completion(0, token_ids=[1, 2, 3]), term(1.0)), (completion(1, token_ids=[4]), term(0.0))),
        reward_weights={"verifier": 1.0},
        baseline="mean",
        normalise_std=False,
    )

    first, second = scored.samples
    np.testing.assert_array_equal(first.token_ids, [5, 6, 1, 2, 3])
    np.testing.assert_array_equal(first.loss_mask, [False, False, True, True, True])
    np.testing.assert_allclose(first.advantages, [0, 0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(first.rollout_logprobs, [0, 0, -1.0, -0.75, -0.5])
    np.testing.assert_allclose(second.advantages, [0, 0, -0.5])
    assert first.min_policy_version == 4


def test_invalid_completion_makes_no_sample_and_no_statistics() -> None:
    scored = make_samples(
        group(
            (completion(0, token_ids=[1]), term(1.0)),
            (completion(1, token_ids=[2]), term(0.0, status="invalid")),
            (completion(2, token_ids=[3]), term(0.0)),
        ),
        reward_weights={"verifier": 1.0},
        baseline="mean",
        normalise_std=False,
    )

    assert [int(sample.token_ids[-1]) for sample in scored.samples] == [1, 3]
    # the mean is over two members: 0.5, not 1/3
    np.testing.assert_allclose([each[-1] for each in scored.advantages], [0.5, 0.0, -0.5])


def test_belief_advantages_are_written_step_by_step() -> None:
    # Two hypotheses, beta 0: weights are P[t] normalised. First completion, two steps over tokens 1-2 and 3, right:
    #   P_0 = .2 .5 .8, P_1 = .2 .5 .0: w = (.5, .5) twice; Q_0 = 1.6, 1.3; Q_1 = -.2, -.5; values .7, .4
    # Second completion, one step, wrong, ends on hypothesis 1:
    #   P_0 = .1 .1, P_1 = .3 .7: w = (.25, .75); Q_0 = 0, Q_1 = 1.4; value 1.05
    scored = group((completion(0, token_ids=[1, 2, 3]), term(1.0)), (completion(1, token_ids=[4, 5]), term(0.0)))
    tables = ([[0.2, 0.2], [0.5, 0.5], [0.8, 1e-30]], [[0.1, 0.3], [0.1, 0.7]])
    traces = tuple(
        BeliefTrace(
            step_ends=np.array(ends, np.int32),
            outcomes=np.array(outcomes, np.int32),
            answer_logprobs=np.log(np.array(table, np.float32)),
            policy_version=3,
            trees_seconds=0.0,
            forward_seconds=0.0,
        )
        for ends, outcomes, table in zip(([2, 3], [2]), ([1, 0], [0, 1]), tables, strict=True)
    )
    samples = make_belief_samples(
        replace(scored, belief_traces=traces),
        reward_weights={"verifier": 1.0},
        belief=BeliefConfig(beta=0.0, subtract_group_mean=False),
    )
    np.testing.assert_allclose(samples.advantages[0], [0, 0, 0.7, 0.7, 0.4], atol=1e-6)
    np.testing.assert_allclose(samples.advantages[1], [0, 0, 1.05, 1.05], atol=1e-6)
    np.testing.assert_allclose(samples.samples[0].advantages, [0, 0, 0.7, 0.7, 0.4], atol=1e-6)
    centred = make_belief_samples(
        replace(scored, belief_traces=traces), reward_weights={"verifier": 1.0}, belief=BeliefConfig(beta=0.0)
    )
    # the mean of the first at its steps: (.7 + 1.05) / 2, (.4 + 1.05) / 2
    np.testing.assert_allclose(centred.advantages[0], [0, 0, -0.175, -0.175, -0.325], atol=1e-6)


def test_markovian_credit_counts_to_the_payment_and_ends_there() -> None:
    scored = triplets("00011", "01000", values=(1.0, 1.0))
    samples = make_environment_samples(
        scored,
        reward_weights={"verifier": 1.0},
        belief=BeliefConfig(discount=0.5),
        task=TripletsTask(),
        hypotheses=(),
    )
    # to go: .25 .5 1 0 0 and .0625 .125 .25 .5 1, less their mean at the same step
    np.testing.assert_allclose(samples.advantages[0], [0, 0, 0.09375, 0.1875, 0.375, -0.25, -0.5])
    np.testing.assert_allclose(samples.advantages[1], [0, 0, -0.09375, -0.1875, -0.375, 0.25, 0.5])
    assert samples.samples[0].loss_mask.tolist() == [False, False, True, True, True, False, False]
    assert samples.samples[1].loss_mask.tolist() == [False, False, True, True, True, True, True]


def test_environment_beliefs_credit_other_hypotheses_as_well() -> None:
    scored = triplets("111", "012", values=(0.0, 0.0))
    samples = make_environment_samples(
        scored,
        reward_weights={"verifier": 1.0},
        belief=BeliefConfig(discount=1.0, subtract_group_mean=False),
        task=TripletsTask(),
        hypotheses=("000", "111"),
    )
    # the truth 000 never pays; 111 pays at the last step, with weight 1/2
    np.testing.assert_allclose(samples.advantages[0], [0, 0, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(samples.advantages[1], np.zeros(5))
    assert all(sample.loss_mask.sum() == 3 for sample in samples.samples)


def triplets(*texts: str, values: tuple[float, ...]) -> ScoredGroup:
    completions = [
        completion(index, token_ids=[int(character) for character in text], text=text)
        for index, text in enumerate(texts)
    ]
    rows = [(each, term(value)) for each, value in zip(completions, values, strict=True)]
    return group(*rows, reference_answer="000")


def test_unweighted_scorer_only_monitors() -> None:
    with pytest.raises(ValueError, match="weight other than 0"):
        make_samples(
            group((completion(0, token_ids=[1]), term(1.0))),
            reward_weights={"verifier": 0.0},
            baseline="mean",
            normalise_std=True,
        )


def test_staleness_counts_from_the_oldest_token() -> None:
    mixed = group(
        (completion(0, token_ids=[1], version=3), term(1.0)), (completion(1, token_ids=[1], version=5), term(0.0))
    )

    assert staleness([mixed], policy_version=5) == [2]
