"""Traces of the embedded policy on real chains against one plain forward pass for each (step, hypothesis)."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.scoring.barl.scorer import BeliefScorer
from actors.scoring.model import ScoringModel
from system.algorithms.barl.belief import AnswerReduction
from system.algorithms.barl.options import BarlOptions
from system.algorithms.barl.records import AnswerHypotheses
from system.config.machine import model_folder
from system.config.schema import ScorerConfig
from system.data.tasks.gsm8k_chains import Gsm8kChainsTask
from system.data.tasks.math import MathTask
from system.records import IntArray, Prompt, TrajectoryGroup
from system.rollouts.rollouter import SampledTokens, TrajectoryBuilder
from tests.trajectories import single_turn

POLICY = str(model_folder("builtin:chains_1m"))
PROMPT = "48+(48/2):"
REDUCTIONS: tuple[AnswerReduction, ...] = ("sum", "mean")
RESPONSES = ("48/2=24\n48+24=72\n#72", "48/2=26\n48+26=74\n#74", "#72", "48/2=24\n48+")
HYPOTHESES = AnswerHypotheses(answers=("72", "74", "7"), stated=np.array([0, 1, 0, -1], np.int32), seconds=0.0)


@pytest.fixture(scope="module")
def model() -> ScoringModel:
    return ScoringModel(
        name="replica", config=ScorerConfig(), model_path=POLICY, revision=None, trust_remote_code=False
    )


def tokens(text: str) -> IntArray:
    return np.array(AutoTokenizer.from_pretrained(POLICY).encode(text, add_special_tokens=False), np.int32)


def make_group() -> TrajectoryGroup:
    end = AutoTokenizer.from_pretrained(POLICY).eos_token_id
    trajectories = tuple(
        single_turn([*tokens(text).tolist(), end], prompt=tokens(PROMPT).tolist(), index=index, text=text)
        for index, text in enumerate(RESPONSES)
    )
    prompt = Prompt(prompt_id="p", token_ids=tokens(PROMPT), text=PROMPT, reference_answer="72", task="gsm8k_chains")
    return TrajectoryGroup(group_id=1, prompt=prompt, trajectories=trajectories)


def plain_logprob(written: str, answer: str) -> float:
    """log pi(answer, end | written + "#") by plain transformers."""
    plain = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)
    end = AutoTokenizer.from_pretrained(POLICY).eos_token_id
    ids = torch.from_numpy(np.append(tokens(f"{written}#{answer}"), end)).long()
    with torch.no_grad():
        logprobs = plain(input_ids=ids[None]).logits[0].double().log_softmax(dim=-1)
    targets = range(len(ids) - len(answer) - 1, len(ids))
    return float(sum(logprobs[position - 1, ids[position]] for position in targets))


def test_traces_equal_plain_passes(model: ScoringModel) -> None:
    scorer = BeliefScorer(model, task=Gsm8kChainsTask(), options=BarlOptions())
    traces = scorer.traces(make_group(), hypotheses=HYPOTHESES)
    assert [trace.step_ends.tolist() for trace in traces] == [[8, 21], [8, 21], [4], [8, 12]]
    assert [trace.stated for trace in traces] == [0, 1, 0, -1]
    asked = [["", "48/2=24\n", "48/2=24\n48+24=72\n"], None, ["", ""], ["", "48/2=24\n", "48/2=24\n48+"]]
    for trace, places in zip(traces, asked, strict=True):
        if places is not None:
            expected = [[plain_logprob(PROMPT + place, answer) for answer in HYPOTHESES.answers] for place in places]
            np.testing.assert_allclose(trace.answer_logprobs, expected, atol=1e-4)
            assert trace.policy_version == 0


def test_two_turns_are_asked_behind_what_the_policy_wrote_and_read_the_environment(model: ScoringModel) -> None:
    first, words, second = "48/2=24\n", "1+1=2\n", "48+24=72\n"
    builder = TrajectoryBuilder(tokens(PROMPT))
    builder.append_sampled(drawn(first))
    builder.append_environment(tokens(words).tolist())
    builder.append_sampled(drawn(second + "#72"))
    builder.append_environment(tokens(words).tolist())
    trajectory = builder.build(index=0, tokenizer=AutoTokenizer.from_pretrained(POLICY))
    assert trajectory.text == f"{first}\n{second}#72"
    group = replace(make_group(), trajectories=(trajectory,))
    hypotheses = replace(HYPOTHESES, stated=np.array([0], np.int32))
    [trace] = BeliefScorer(model, task=Gsm8kChainsTask(), options=BarlOptions()).traces(group, hypotheses=hypotheses)
    assert trace.step_ends.tolist() == [8, 20]
    places = ["", first, first + words + second]  # the words stand before the second turn, and are no step
    expected = [[plain_logprob(PROMPT + place, answer) for answer in HYPOTHESES.answers] for place in places]
    np.testing.assert_allclose(trace.answer_logprobs, expected, atol=1e-4)


def drawn(text: str) -> SampledTokens:
    token_ids = tokens(text).tolist()
    return SampledTokens(
        token_ids=token_ids, logprobs=[0.0] * len(token_ids), version_starts=[0], versions=[0], finish_reason="stop"
    )


def test_the_policy_believes_what_it_has_worked_out(model: ScoringModel) -> None:
    right, wrong, *_ = BeliefScorer(model, task=Gsm8kChainsTask(), options=BarlOptions()).traces(
        make_group(), hypotheses=HYPOTHESES
    )
    assert np.exp(right.answer_logprobs[-1, 0]) > 0.9
    assert np.exp(wrong.answer_logprobs[-1, 1]) > 0.9
    # "7" is no beginning of "72": the end token belongs to the answer
    assert np.exp(right.answer_logprobs[-1]).sum() < 1.0 + 1e-4


def test_mean_reduction_takes_out_the_length(model: ScoringModel) -> None:
    group = make_group()
    total, mean = (
        BeliefScorer(model, task=Gsm8kChainsTask(), options=BarlOptions(reduction=reduction)).traces(
            group, hypotheses=HYPOTHESES
        )[0]
        for reduction in REDUCTIONS
    )
    np.testing.assert_allclose(mean.answer_logprobs * [3, 3, 2], total.answer_logprobs, rtol=1e-5)


def test_one_hypothesis_and_an_empty_completion(model: ScoringModel) -> None:
    group = make_group()
    empty = single_turn([], prompt=tokens(PROMPT).tolist())
    traces = BeliefScorer(model, task=Gsm8kChainsTask(), options=BarlOptions()).traces(
        replace(group, trajectories=(empty,)),
        hypotheses=AnswerHypotheses(answers=("72",), stated=np.array([-1], np.int32), seconds=0.0),
    )
    assert traces[0].answer_logprobs.shape == (1, 1)
    np.testing.assert_allclose(traces[0].answer_logprobs[0, 0], plain_logprob(PROMPT, "72"), atol=1e-4)
    assert traces[0].step_ends.tolist() == []


def test_a_probe_and_chunks_of_tokens_as_the_authors_ask(model: ScoringModel) -> None:
    # twelve tokens in chunks of five, asked behind each and behind all of it
    options = BarlOptions(steps="tokens", step_tokens=5, probe="#", reduction="mean")
    group = make_group()
    scores = BeliefScorer(model, task=Gsm8kChainsTask(), options=options).score(group, (HYPOTHESES,))
    assert scores.evidence is not None
    trace = scores.evidence[3]
    assert trace.step_ends.tolist() == [5, 10, 12]
    assert trace.answer_logprobs.shape == (4, 3)
    assert scores.terms[3][0].value == pytest.approx(float(np.exp(trace.answer_logprobs[-1, 0])))
    again = BeliefScorer(model, task=Gsm8kChainsTask(), options=options).score(group, scores.evidence)
    assert again.evidence is not None
    np.testing.assert_array_equal(again.evidence[3].answer_logprobs, trace.answer_logprobs)


def test_text_tasks_close_the_box() -> None:
    continuation = MathTask().answer_continuation("72")
    assert continuation.prefix.startswith("</think>")
    assert continuation.prefix.endswith("\\boxed{")
    assert (continuation.text, continuation.ends_response) == ("72}", False)
