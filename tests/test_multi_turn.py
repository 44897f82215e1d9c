"""A trajectory with two sampled spans and words of the environment between and behind them, all the way downstream."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from learner.packed_loss import PackedInputs
from system.data.batching import pack_batch
from system.data.group_files import group_as_json, read_groups
from system.data.samples import make_sample, staleness
from system.numerics.policy_model import load_policy_model
from system.records import RewardTerm, ScoredGroup, TrainingSample
from system.reports.tracker import sample_completions
from system.runtime.evaluator import summarise
from tests.tiny_policies import make_policy
from tests.trajectories import group_of, single_turn, two_turns

VERDICT = RewardTerm(scorer="verifier", value=1.0, status="ok", reason="right", policy_version=-1, seconds=0.0)


def sample() -> TrainingSample:
    """Advantages also where nothing was sampled, and the first sampled token not in the loss."""
    in_loss = np.ones(10, np.bool_)
    in_loss[2] = False
    return make_sample(two_turns(), group_id=7, advantages=np.arange(1, 11, dtype=np.float32), in_loss=in_loss)


def scored() -> ScoredGroup:
    group = group_of(two_turns(), single_turn([5, 2], prompt=[3, 4], index=1, text="f", versions=[6]))
    return ScoredGroup(group=group, terms=((VERDICT,), (replace(VERDICT, value=0.0),)))


def test_the_environment_is_read_but_not_trained_on() -> None:
    made = sample()
    assert made.token_ids.tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 2, 11]
    assert np.flatnonzero(made.loss_mask).tolist() == [3, 7, 8]
    assert made.advantages.tolist() == [0, 0, 3, 4, 0, 0, 0, 8, 9, 0]
    assert made.rollout_logprobs.tolist() == [0, 0, -0.5, -0.25, 0, 0, 0, -1.0, -0.125, 0]
    assert made.min_policy_version == 4


def test_other_shapes_make_no_sample() -> None:
    with pytest.raises(ValueError, match=r"must have the shape of token_ids \(10,\)"):
        make_sample(two_turns(), group_id=7, advantages=np.zeros(4, np.float32), in_loss=np.ones(10, np.bool_))


def test_the_learner_sees_the_loss_tokens_in_their_context(tmp_path: Path) -> None:
    other = single_turn([5, 2], prompt=[3, 4, 8], versions=[5])
    ones = np.ones(5, np.float32)
    samples = [sample(), make_sample(other, group_id=8, advantages=ones, in_loss=ones > 0)]
    batch = pack_batch(samples, num_ranks=1, tokens_per_microbatch=20)
    assert (batch.num_loss_tokens, batch.num_sequences) == (5, 2)
    (micro_batch,) = batch.steps_by_rank[0][0].micro_batches
    inputs = PackedInputs(micro_batch, device=torch.device("cpu"))
    assert inputs.loss_index.tolist() == [3, 7, 8, 13, 14]
    assert inputs.rollout_logprobs.tolist() == [-0.25, -1.0, -0.125, 0.0, 0.0]
    assert inputs.advantages.tolist() == [4, 8, 9, 1, 1]
    assert inputs.min_policy_versions.tolist() == [4, 4, 4, 5, 5]

    folder = make_policy(tmp_path / "policy", is_tied=True)
    model = load_policy_model(
        str(folder), revision=None, trust_remote_code=False, dtype=torch.float32, device=torch.device("cpu")
    )
    plain = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = inputs.forward(model, temperature=1.0).logprobs
        log_p = plain(input_ids=torch.tensor([two_turns().token_ids.tolist()])).logits[0].log_softmax(dim=-1)
    expected = [log_p[position - 1, two_turns().token_ids[position]] for position in (3, 7, 8)]
    np.testing.assert_allclose(logprobs[:3].numpy(), expected, atol=1e-4)


def test_a_file_gives_back_both_turns(tmp_path: Path) -> None:
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps(group_as_json(scored())) + "\n")
    [filed] = read_groups(path, task_name="gsm8k_chains", tokenise=lambda text: [])
    read, written = filed.scored.group.trajectories[0], two_turns()
    for name in ("token_ids", "is_sampled", "logprobs", "sampled_policy_versions"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert (read.turns, read.text, read.finish_reason) == ([(2, 4), (7, 9)], "fg\nkc", "stop")


def test_staleness_is_that_of_the_oldest_sampled_token() -> None:
    assert staleness([scored()], policy_version=6) == [2]  # version 4; the prompt's -1 is nobody's
    nothing = single_turn([], prompt=[3], index=2)
    group = scored().group
    assert replace(group, trajectories=(*group.trajectories, nothing)).min_policy_version == 4


def test_lengths_count_what_the_policy_wrote() -> None:
    [row] = sample_completions([scored()], count=1)
    assert (row.completion, row.num_tokens) == ("fg\nkc", 4)
    newest = replace(two_turns(), policy_versions=single_turn([1], versions=[6]).policy_versions)
    held_out = replace(scored(), group=replace(scored().group, trajectories=(newest, scored().group.trajectories[1])))
    result = summarise([held_out], [held_out], policy_version=6)
    assert result.length_mean_tokens == 3.0  # 4 and 2
    assert result.tokens_per_solved == 6.0
