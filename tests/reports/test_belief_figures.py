"""Figures of beliefs: which completions are drawn, what the points of pass@k against tokens are, and that both draw."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from system.algorithms.rewards import combine_rewards
from system.config.schema import BeliefConfig
from system.data.samples import ScoredSamples, make_belief_samples
from system.metrics import MetricSet, MetricTable
from system.records import (
    AnswerHypotheses,
    BeliefTrace,
    Prompt,
    RewardTerm,
    ScoredGroup,
    TrajectoryGroup,
)
from system.reports.belief_figures import KEY, draw_posteriors, posterior_panels, posteriors_figure
from system.reports.metric_history import HistoryLine, MetricHistory
from system.reports.metrics import SYSTEM_METRICS
from system.reports.pass_at_k_figure import (
    draw_pass_at_k,
    draw_tokens_curve,
    finish_tokens_axes,
    pass_at_k_points,
)
from system.reports.step_metrics import add_belief_shares, add_group_metrics
from tests.trajectories import single_turn


def scored_group(group_id: int, *, num_steps: tuple[int, ...]) -> ScoredSamples:
    """One completion for each entry of `num_steps`, a token a step; hypothesis 1 is stated by the last completion."""
    trajectories = tuple(
        single_turn(range(steps), index=index, text="wait, 3" if index == 0 else "3", versions=[4])
        for index, steps in enumerate(num_steps)
    )
    last = len(num_steps) - 1
    traces = tuple(
        BeliefTrace(
            step_ends=np.arange(1, steps + 1, dtype=np.int32),
            outcomes=np.array([0, int(index == last)], np.int32),
            answer_logprobs=np.log(np.full((steps + 1, 2), 0.5, np.float32)),
            policy_version=4,
            trees_seconds=0.5,
            forward_seconds=2.0,
        )
        for index, steps in enumerate(num_steps)
    )
    term = RewardTerm(scorer="verifier", value=0.0, status="ok", reason="", policy_version=-1, seconds=0.0)
    prompt = Prompt(prompt_id="p", token_ids=np.array([1], np.int32), text="1+2:", reference_answer="3", task="t")
    group = ScoredGroup(
        group=TrajectoryGroup(group_id=group_id, prompt=prompt, trajectories=trajectories),
        terms=((term,),) * len(num_steps),
        hypotheses=AnswerHypotheses(
            answers=("3", r"$\frac{$ and more"),  # no formula that matplotlib could read
            stated=np.array([-1] * last + [1], np.int32),
            seconds=0.25,
        ),
        belief_traces=traces,
    )
    return make_belief_samples(group, reward_weights={"verifier": 1.0}, belief=BeliefConfig())


def test_the_longest_completion_of_the_first_groups_is_drawn(tmp_path: Path) -> None:
    scored = [
        scored_group(9, num_steps=(2, 2)),
        scored_group(3, num_steps=(1, 3, 4)),
        scored_group(5, num_steps=(3, 1)),
    ]
    panels = posterior_panels(scored, count=2)
    assert [panel.title for panel in panels] == ["group 3, completion 2", "group 5, completion 0"]
    assert [panel.stated for panel in panels] == [1, None]
    assert panels[0].posterior.shape == (5, 2)
    draw_posteriors(panels, path=tmp_path / "beliefs.png", title="beliefs")
    assert imread(tmp_path / "beliefs.png").std() > 0.05
    figure = posteriors_figure(panels, title="beliefs")
    assert figure.get_suptitle() == f"beliefs\n{KEY}"
    assert figure.axes[0].get_title() == "group 3, completion 2\n1+2:"
    with pytest.raises(ValueError, match="no completion"):
        draw_posteriors([], path=tmp_path / "none.png", title="")


def test_groups_without_beliefs_are_left_out() -> None:
    scored = scored_group(1, num_steps=(1,)).scored
    rewards = combine_rewards(scored.terms, weights={"verifier": 1.0})
    assert posterior_panels([ScoredSamples(scored=scored, rewards=rewards, advantages=(), samples=())], count=3) == []


def test_pass_at_k_is_drawn_against_the_tokens_of_k_completions(tmp_path: Path) -> None:
    values = {
        "eval/accuracy_sampled": 0.25,
        "eval/length_mean_tokens": 30.0,
        "eval/pass_at_8": 0.5,
        "eval/pass_at_2": 0.4,
    }
    full = HistoryLine(policy_version=0, values=values)
    assert pass_at_k_points(full) == [(30.0, 0.25), (60.0, 0.4), (240.0, 0.5)]
    single = HistoryLine(policy_version=20, values={"eval/accuracy_sampled": 0.3, "eval/length_mean_tokens": 31.0})
    path = tmp_path / "pass_at_k.png"
    assert not draw_pass_at_k(MetricHistory(lines=(single,)), path=path, title="run")
    assert not path.exists()
    assert draw_pass_at_k(MetricHistory(lines=(full, single)), path=path, title="run")
    assert path.exists()


def test_pass_at_k_of_a_policy_that_solves_nothing_stays_above_zero() -> None:
    axes = Figure().subplots()
    draw_tokens_curve(axes, points=[(30.0, 0.0), (60.0, 0.0)], label="before")
    finish_tokens_axes(axes, title="pass@k")
    assert axes.get_ylim() == (0.0, 0.05)


def test_belief_metrics_of_an_update() -> None:
    metrics = MetricSet(MetricTable(SYSTEM_METRICS))
    add_group_metrics(metrics, [scored_group(1, num_steps=(2, 10))], policy_version=4)
    metrics.add("belief/credit_seconds", 0.1)
    add_belief_shares(metrics, step_seconds=10.0)
    values = metrics.reduce()
    assert values["belief/num_steps_mean"] == 6
    assert {name for name in values if name.startswith("belief/value_at_step_")} == {
        f"belief/value_at_step_{step}" for step in range(8)
    }
    # the second completion ends on hypothesis 1, whose weight is a half: 0 and 0.5 on the first two steps
    assert values["belief/value_at_step_0"] == pytest.approx(0.25)
    assert values["belief/value_at_step_7"] == pytest.approx(0.5)
    assert values["completion/reflection_words_mean"] == 0.5
    # both are wrong; their advantages are -0.25 and 0.25 all along
    assert values["advantage/wrong_mean"] == pytest.approx(0.0)
    assert "advantage/right_mean" not in values
    expected = {"hypotheses": 0.25, "trees": 1.0, "forward": 4.0, "credit": 0.1}
    for phase, seconds in expected.items():
        assert values[f"belief/{phase}_seconds"] == pytest.approx(seconds)
        assert values[f"belief/{phase}_share"] == pytest.approx(seconds / 10.0)


def test_shares_are_absent_where_no_belief_was_asked_for() -> None:
    metrics = MetricSet(MetricTable(SYSTEM_METRICS))
    add_belief_shares(metrics, step_seconds=10.0)
    assert metrics.reduce() == {}
