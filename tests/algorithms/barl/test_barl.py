"""BARL and Progress on whole groups, by hand: advantages, metrics and what is drawn."""

import math

import numpy as np
import pytest

from system.algorithms.barl.barl import Barl
from system.algorithms.barl.options import BarlOptions, ProgressOptions
from system.algorithms.barl.records import AnswerHypotheses, BeliefTrace
from system.algorithms.progress import Progress
from system.errors import ConfigError
from system.metrics import MetricSet, MetricTable
from system.records import ScoredGroup
from tests.algorithms.groups import context, scored

# Two hypotheses. First response, two steps over tokens 1-2 and 3, right: P_0 = .2 .5 .8, P_1 = .2 .5 .0
# Second response, one step over two tokens, wrong: P_0 = .1 .1, P_1 = .3 .7
TABLES = ([[0.2, 0.2], [0.5, 0.5], [0.8, 1e-30]], [[0.1, 0.3], [0.1, 0.7]])
STEP_ENDS = ([2, 3], [2])


def group(group_id: int = 7) -> ScoredGroup:
    hypotheses = AnswerHypotheses(answers=("000", "1"), stated=np.array([0, 1], np.int32), seconds=0.25)
    traces = tuple(
        BeliefTrace(
            hypotheses=hypotheses,
            stated=stated,
            step_ends=np.array(ends, np.int32),
            answer_logprobs=np.log(np.array(table, np.float32)),
            policy_version=3,
            trees_seconds=0.5,
            forward_seconds=2.0,
        )
        for ends, stated, table in zip(STEP_ENDS, (0, 1), TABLES, strict=True)
    )
    return scored(1.0, 0.0, texts=["123", "45"], group_id=group_id, evidence=traces)


def advantages(algorithm: Barl) -> list[list[float]]:
    """Of the sampled tokens."""
    return [values[2:].tolist() for values in algorithm.credit([group()]).groups[0].advantages]


def close(actual: list[list[float]], *expected: list[float]) -> None:
    for own, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(own, wanted, atol=1e-6)


def test_every_token_of_a_step_gets_its_value() -> None:
    # beta 0, weights P[t] normalised: .5 .5 on both steps; 1 + .5 * .6 - .5 * .2, 1 + .5 * .3 - .5 * .5
    # second: weights .25 .75: 0 + .75 * .4
    algorithm = Barl(BarlOptions(beta=0.0, baseline="none"), context=context())
    close(advantages(algorithm), [1.2, 1.2, 0.9], [0.3, 0.3])


def test_the_groups_mean_at_the_same_relative_step_is_the_default_baseline() -> None:
    # means (1.2 + .3) / 2 and (.9 + .3) / 2
    close(advantages(Barl(BarlOptions(beta=0.0), context=context())), [0.45, 0.45, 0.3], [-0.45, -0.45])


def test_the_authors_whiten_over_all_tokens_of_the_batch() -> None:
    # 1.2 1.2 .9 .3 .3: mean .78, variance (2 * .42^2 + .12^2 + 2 * .48^2) / 4 = .207
    algorithm = Barl(BarlOptions(beta=0.0, baseline="batch"), context=context())
    deviation = math.sqrt(0.207)
    close(advantages(algorithm), [0.42 / deviation] * 2 + [0.12 / deviation], [-0.48 / deviation] * 2)


def test_progress_reads_the_reference_alone() -> None:
    # 1 + .8 - .2, 1 + .8 - .5; 0 + .1 - .1: with one hypothesis the table has one column
    one = group()
    assert one.evidence is not None
    alone = tuple(
        BeliefTrace(
            hypotheses=AnswerHypotheses(answers=("000",), stated=np.array([0, -1], np.int32), seconds=0.0),
            stated=0,
            step_ends=trace.step_ends,
            answer_logprobs=trace.answer_logprobs[:, :1],
            policy_version=3,
            trees_seconds=0.0,
            forward_seconds=0.0,
        )
        for trace in one.evidence
    )
    algorithm = Progress(ProgressOptions(baseline="none"), context=context())
    credit = algorithm.credit([scored(1.0, 0.0, texts=["123", "45"], evidence=alone)])
    close([values[2:].tolist() for values in credit.groups[0].advantages], [1.6, 1.6, 1.3], [0.0, 0.0])


def test_metrics_speak_of_steps_hypotheses_and_time() -> None:
    algorithm = Barl(BarlOptions(beta=0.0), context=context())
    metrics = MetricSet(MetricTable(Barl.metric_definitions))
    algorithm.add_metrics(metrics, [group()], credit=algorithm.credit([group()]))
    values = metrics.reduce()
    assert values["belief/num_steps_mean"] == 1.5
    assert values["belief/num_hypotheses_mean"] == 2
    assert values["credit/value_at_step_0"] == pytest.approx((1.2 + 0.3) / 2)
    assert values["credit/value_at_step_1"] == pytest.approx(0.9)
    assert values["belief/reference_probability_mean"] == pytest.approx((0.8 + 0.1) / 2)
    assert (values["credit/hypotheses_seconds"], values["credit/trees_seconds"]) == (0.25, 1.0)
    assert values["credit/forward_seconds"] == 4.0
    assert values["credit/advantages_seconds"] > 0


def test_the_longest_response_of_the_first_groups_is_drawn() -> None:
    algorithm = Barl(BarlOptions(), context=context())
    groups = [group(9), group(3), group(5)]
    panels = algorithm.heat_maps(groups, credit=algorithm.credit(groups), count=2)
    assert [panel.title for panel in panels] == ["group 3, completion 0", "group 5, completion 0"]
    assert panels[0].values.shape == (2, 3)
    assert panels[0].row_labels == ("000", "1")
    assert panels[0].bold_row == 0


def test_a_group_that_was_not_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="group 7 has 0 traces for 2"):
        Barl(BarlOptions(), context=context()).credit([scored(1.0, 0.0)])


@pytest.mark.parametrize(
    ("options", "weights", "task_name", "message"),
    [
        (BarlOptions(), {"verifier": 1.0, "self_certainty": 0.5}, "math", "reward.terms: given '0.5 x self_certainty'"),
        (BarlOptions(), {"verifier": 1.0}, "code", "algorithm.name: given 'barl', expected grpo with task.name=code"),
        (BarlOptions(step_tokens=64), {"verifier": 1.0}, "math", "algorithm.options.step_tokens: given 64"),
    ],
)
def test_what_would_be_ignored_is_refused(
    options: BarlOptions, weights: dict[str, float], task_name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Barl.check(options, weights=weights, normalise_terms=False, task_name=task_name)
