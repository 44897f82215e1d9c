"""The scoring replica: values against plain transformers and float64, weights from snapshots."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from actors.scoring.model import ScoringModel
from actors.scoring.self_certainty import SelfCertaintyScorer
from system.config.schema import ScorerConfig
from system.errors import NotFiniteError, SnapshotLostError, WeightSyncError
from system.records import FloatArray, IntArray, PolicyVersions, Prompt, TrajectoryGroup
from system.weights.canary import refusal
from system.weights.manifest import ReceiverStatus
from tests.tiny_policies import (
    NUM_EMBEDDINGS,
    NUM_TOKENIZER_ENTRIES,
    changed,
    make_policy,
    named_weights,
    reference_logprobs,
)
from tests.trajectories import group_of, single_turn, two_turns
from tests.weights.memory_store import MemoryStore

STORE = MemoryStore()
CANARY = [3, 4, 5, 6, 7]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_policy(tmp_path_factory.mktemp("policy"), is_tied=request.param)


def make_model(policy: Path, **changes: object) -> ScoringModel:
    config = replace(ScorerConfig(), **changes)  # type: ignore[arg-type]
    return ScoringModel(
        name="scoring replica 0",
        config=config,
        model_path=str(policy),
        revision=None,
        trust_remote_code=False,
        fetch=STORE.fetch,
    )


def make_group(lengths: tuple[int, ...] = (5, 9, 1, 14), *, version: int = 0) -> TrajectoryGroup:
    rng = np.random.default_rng(0)

    def tokens(length: int) -> IntArray:
        return rng.integers(3, NUM_TOKENIZER_ENTRIES, length).astype(np.int32)

    prompt = Prompt(prompt_id="p", token_ids=tokens(7), text="", reference_answer="", task="gsm8k_chains")
    trajectories = tuple(
        single_turn(tokens(length).tolist(), prompt=prompt.token_ids.tolist(), index=index, versions=[version])
        for index, length in enumerate(lengths)
    )
    return TrajectoryGroup(group_id=4, prompt=prompt, trajectories=trajectories)


def expected(
    model: Qwen2ForCausalLM, group: TrajectoryGroup, *, num_columns: int
) -> list[tuple[FloatArray, FloatArray]]:
    """Of each trajectory's sampled tokens: (log-probability over all columns, self-certainty over `num_columns`)."""
    answers = []
    for trajectory in group.trajectories:
        ids = torch.from_numpy(trajectory.token_ids).long()
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1].double()[trajectory.is_sampled[1:]]
        targets = ids[trajectory.is_sampled]
        logprobs = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
        real = logits[:, :num_columns]
        certainty = real.logsumexp(dim=-1) - real.mean(dim=-1) - math.log(num_columns)
        answers.append((logprobs.numpy(), certainty.numpy()))
    return answers


def load(sender: Qwen2ForCausalLM, receiver: ScoringModel, *, policy_version: int) -> tuple[ReceiverStatus, str]:
    """One load from the store: what the receiver reports, and the digest that was published."""
    canary = reference_logprobs(sender, CANARY)
    manifest = STORE.publish(
        named_weights(sender), policy_version=policy_version, canary_token_ids=CANARY, canary_logprobs=canary
    )
    return receiver.load_weights(manifest, 20.0), manifest.digest


def with_two_turns(group: TrajectoryGroup) -> TrajectoryGroup:
    """The group and a trajectory in which the environment speaks between two turns, and last."""
    return replace(group, trajectories=(*group.trajectories, two_turns(index=len(group.trajectories))))


@pytest.mark.parametrize("tokens_per_pass", [24, 10_000])
@pytest.mark.parametrize("mask_padded_vocab", [True, False])
def test_statistics_are_those_of_plain_transformers(
    policy: Path, tokens_per_pass: int, mask_padded_vocab: bool
) -> None:
    model = make_model(policy, tokens_per_pass=tokens_per_pass, mask_padded_vocab=mask_padded_vocab)
    reference = Qwen2ForCausalLM.from_pretrained(policy, dtype=torch.float32)
    group = with_two_turns(make_group())
    num_columns = NUM_TOKENIZER_ENTRIES if mask_padded_vocab else NUM_EMBEDDINGS
    statistics = model.trajectory_statistics(group, temperature=1.0)
    for each, (logprobs, certainty) in zip(
        statistics, expected(reference, group, num_columns=num_columns), strict=True
    ):
        np.testing.assert_allclose(each.logprobs, logprobs, atol=1e-4)
        np.testing.assert_allclose(each.self_certainty, certainty, atol=1e-4)


def test_temperature_flattens_and_so_lowers_certainty(policy: Path) -> None:
    model, group = make_model(policy), make_group()
    sharp = model.trajectory_statistics(group, temperature=1.0)[1].self_certainty
    flat = model.trajectory_statistics(group, temperature=4.0)[1].self_certainty
    assert (flat < sharp).all()


def test_weights_that_arrive_score_and_carry_their_version(policy: Path) -> None:
    model, group = make_model(policy), make_group(version=3)
    sender = Qwen2ForCausalLM.from_pretrained(policy, dtype=torch.float32)
    scorer = SelfCertaintyScorer(model, temperature=1.0, rollout_temperature=1.0)
    before = scorer.score(group)
    changed(sender, seed=1)
    status, digest = load(sender, model, policy_version=3)
    assert (status.policy_version, status.digest) == (3, digest)
    after = scorer.score(group)
    assert {term.policy_version for term in before} == {0}
    assert {term.policy_version for term in after} == {3}
    certainties = [certainty.mean() for _, certainty in expected(sender, group, num_columns=NUM_TOKENIZER_ENTRIES)]
    assert [term.value for term in after] == pytest.approx(certainties, abs=1e-4)
    assert [term.value for term in before] != pytest.approx(certainties, abs=1e-2)


def test_the_canary_agrees_with_the_learner_after_a_load_and_not_before(policy: Path) -> None:
    model = make_model(policy)
    sender = Qwen2ForCausalLM.from_pretrained(policy, dtype=torch.float32)
    changed(sender, seed=2)
    wanted = reference_logprobs(sender, CANARY)
    assert np.abs(model.canary_logprobs(CANARY) - wanted).max() > 0.01
    status, _ = load(sender, model, policy_version=1)
    assert status.canary_max_abs_diff is not None
    assert status.canary_max_abs_diff < 1e-4
    np.testing.assert_allclose(model.canary_logprobs(CANARY), wanted, atol=1e-4)


def test_a_replica_that_missed_an_update_is_refused(policy: Path) -> None:
    model = make_model(policy)
    sender = Qwen2ForCausalLM.from_pretrained(policy, dtype=torch.float32)
    status, _ = load(sender, model, policy_version=1)
    changed(sender, seed=1)
    missed = STORE.publish(named_weights(sender), policy_version=2)
    assert refusal(status, missed) == "scoring replica 0 holds policy version 1, not 2"
    pretends = replace(status, policy_version=2)
    assert "digest" in str(refusal(pretends, missed))


def test_a_load_that_broke_off_forbids_scoring_until_a_whole_one_came(policy: Path) -> None:
    store = MemoryStore()
    model = make_model(policy)
    model._fetch = store.fetch
    sender = Qwen2ForCausalLM.from_pretrained(policy, dtype=torch.float32)
    manifest = store.publish(named_weights(sender), policy_version=2)
    del store.objects[len(manifest.references) - 1]
    with pytest.raises(SnapshotLostError):
        model.load_weights(manifest, 20.0)
    with pytest.raises(WeightSyncError, match="broke off; it may not score"):
        model.trajectory_statistics(make_group(), temperature=1.0)
    model.load_weights(store.publish(named_weights(sender), policy_version=2), 20.0)
    assert len(model.trajectory_statistics(make_group(), temperature=1.0)) == 4


def test_weights_of_another_model_are_refused(policy: Path) -> None:
    model = make_model(policy)
    other = STORE.publish({"model.other": torch.zeros(2)}, policy_version=2)
    with pytest.raises(WeightSyncError, match="another model"):
        model.load_weights(other, 20.0)


def test_an_average_is_not_compared_with_what_an_engine_drew(policy: Path) -> None:
    model, group = make_model(policy), make_group()
    scorer = SelfCertaintyScorer(model, temperature=1.0, rollout_temperature=1.0)
    sender = Qwen2ForCausalLM.from_pretrained(policy, dtype=torch.float32)
    model.load_weights(STORE.publish(named_weights(sender), policy_version=0), 20.0)  # no canary: an average
    assert model.is_average
    scorer.score(group)  # version 0 wrote its tokens, with other log-probabilities
    assert scorer.take_logprob_difference() is None


def test_weights_that_are_not_finite_are_refused(policy: Path) -> None:
    model = make_model(policy)
    sender = Qwen2ForCausalLM.from_pretrained(policy, dtype=torch.float32)
    with torch.no_grad():
        sender.model.norm.weight[3] = math.nan
    with pytest.raises(WeightSyncError, match="scoring replica 0: the log-probabilities of the canary are NaN"):
        load(sender, model, policy_version=1)
    with pytest.raises(NotFiniteError, match="scoring replica 0, group 4"):
        model.trajectory_statistics(make_group(), temperature=1.0)


def test_the_difference_to_the_engine_is_taken_over_own_completions_only(policy: Path) -> None:
    model, group = make_model(policy), make_group()
    scorer = SelfCertaintyScorer(model, temperature=1.0, rollout_temperature=1.0)
    statistics = model.trajectory_statistics(group, temperature=1.0)
    drawn = [
        replace(trajectory, logprobs=trajectory.at_sampled(each.logprobs + 0.25 * (index == 1)))
        for index, (trajectory, each) in enumerate(zip(group.trajectories, statistics, strict=True))
    ]
    old = PolicyVersions(starts=np.array([0], np.int32), versions=np.array([-1], np.int32))
    scorer.score(replace(group, trajectories=tuple(drawn)))
    assert scorer.take_logprob_difference() == pytest.approx(0.25, abs=1e-5)
    drawn[1] = replace(drawn[1], policy_versions=old)
    scorer.score(replace(group, trajectories=tuple(drawn)))
    assert scorer.take_logprob_difference() == pytest.approx(0.0, abs=1e-5)
    assert scorer.take_logprob_difference() is None


def test_the_certainty_of_two_turns_is_the_mean_over_their_sampled_tokens(policy: Path) -> None:
    model, group = make_model(policy, mask_padded_vocab=False), group_of(two_turns())
    scorer = SelfCertaintyScorer(model, temperature=1.0, rollout_temperature=1.0)
    [term] = scorer.score(group)
    [(_, certainty)] = expected(
        Qwen2ForCausalLM.from_pretrained(policy, dtype=torch.float32), group, num_columns=NUM_EMBEDDINGS
    )
    assert len(certainty) == 4
    assert term.value == pytest.approx(certainty.mean(), abs=1e-4)
    assert scorer.take_logprob_difference() is None  # three versions wrote it, none of them the replica's
