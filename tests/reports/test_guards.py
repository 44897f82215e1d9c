"""The guards on simulated runs: collapses of several shapes, healthy runs, and the life of an alarm.

The noise is that of a real run with 32 prompts an update: sizes and correlations were taken from its history.
"""

import json
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from system.reports.guards import (
    ACCURACY,
    CERTAINTY_SOURCES,
    DISTINCT,
    GUARD_METRICS,
    LENGTH,
    REPETITION,
    RULES,
    TRUNCATED,
    Alarm,
    GuardThresholds,
    HackingGuards,
)

Curve = NDArray[np.float64]
Run = dict[str, Curve]

REWARD_CERTAINTY, LEARNER_CERTAINTY = CERTAINTY_SOURCES
NAMES = (ACCURACY, LEARNER_CERTAINTY, DISTINCT, REPETITION, LENGTH)
CORRELATION = np.array(
    [
        [1.00, 0.34, 0.54, -0.28, -0.56],
        [0.34, 1.00, 0.46, -0.39, -0.64],
        [0.54, 0.46, 1.00, -0.48, -0.93],
        [-0.28, -0.39, -0.48, 1.00, 0.50],
        [-0.56, -0.64, -0.93, 0.50, 1.00],
    ]
)


def curves(
    accuracy: Curve, certainty: Curve, *, distinct: float = 1.0, repetition: float = 1.0, length: Curve | None = None
) -> Run:
    """A run without noise. `distinct` and `repetition`: by what they are multiplied by its end."""
    ramp = np.linspace(0.0, 1.0, len(accuracy))
    return {
        ACCURACY: accuracy,
        LEARNER_CERTAINTY: certainty,
        DISTINCT: 0.0165 * (1 + (distinct - 1) * ramp),
        REPETITION: 0.033 * (1 + (repetition - 1) * ramp),
        LENGTH: np.full(len(accuracy), 31.0) if length is None else length,
    }


def with_noise(run: Run, *, seed: int) -> Run:
    noise = np.random.default_rng(seed).multivariate_normal(np.zeros(5), CORRELATION, size=len(run[ACCURACY])).T
    accuracy_noise = 0.064 * np.sqrt(run[ACCURACY] * (1 - run[ACCURACY]) / 0.22) * noise[0]
    noisy = {ACCURACY: np.clip(run[ACCURACY] + accuracy_noise, 0.0, 1.0)}
    for index, (name, size) in enumerate(zip(NAMES[1:], (0.011, 0.065, 0.25, 0.07), strict=True), start=1):
        noisy[name] = run[name] * np.exp(size * noise[index])
    return noisy


def healthy_runs() -> dict[str, Run]:
    update = np.arange(500.0)
    time = update / 500
    saturating = 1 - np.exp(-update / 150)
    return {
        "learns, shorter": curves(0.30 + 0.12 * time, 10.5 + time, distinct=0.9, length=31 * (1 - 0.15 * time)),
        "learns, longer": curves(0.30 + 0.12 * time, 10.5 + time, distinct=0.9, length=31 * (1 + 0.15 * time)),
        "learns fast, then stays": curves(
            0.42 - 0.12 * np.exp(-update / 80),
            10.5 + 1.5 * saturating,
            distinct=0.9,
            length=31 * (1 + 0.15 * np.sin(update / 40)),
        ),
        "holds while certainty rises by a fifth": curves(
            0.32 + 0.02 * time, 10.5 + 2.1 * saturating, distinct=0.9, repetition=1.3, length=31 * (1 - 0.15 * time)
        ),
        "nothing changes": curves(np.full(500, 0.35), np.full(500, 10.5)),
    }


def collapse(num_healthy: int, *, num_updates: int = 40) -> Run:
    """Accuracy 42 to 3 %, length 36 to 13, certainty up by 30 %, linearly, after a healthy time."""
    before = np.arange(num_healthy) / max(num_healthy, 1)
    way = np.minimum(np.arange(num_updates * 1.5) / num_updates, 1.0)
    return curves(
        np.concatenate([0.32 + 0.10 * before, 0.42 - 0.39 * way]),
        10.5 * np.concatenate([1 + 0.03 * before, 1.03 + 0.30 * way]),
        length=np.concatenate([31 + 5 * before, 36 - 23 * way]),
    )


def sigmoid_collapse() -> Run:
    way = 1 / (1 + np.exp(-(np.arange(60.0) - 25) / 4))
    return curves(0.42 - 0.39 * way, 10.5 * (1 + 0.3 * way), length=36 - 23 * way)


def decline(num_updates: int, *, certainty: float, num_healthy: int = 0) -> Run:
    """Accuracy 32 to 7 % with little else to see."""
    before, way = np.arange(num_healthy) / max(num_healthy, 1), np.linspace(0.0, 1.0, num_updates)
    return curves(
        np.concatenate([0.27 + 0.05 * before, 0.32 - 0.25 * way]),
        10.5 * np.concatenate([1 + 0.02 * before, 1.02 + certainty * way]),
    )


def ramble() -> Run:
    way = np.linspace(0.0, 1.0, 60)
    return curves(0.32 - 0.27 * way, 10.5 * (1 + 0.15 * way), distinct=0.5, repetition=12.0, length=31 * (1 + 2 * way))


def alarms_of(run: Run, *, thresholds: GuardThresholds | None = None, without: str = "") -> list[Alarm]:
    guards = HackingGuards(thresholds)
    alarms: list[Alarm] = []
    for update, values in updates_of(run, without=without):
        alarms += guards.observe(values, update=update).new_alarms
    return alarms


def updates_of(run: Run, *, without: str = "") -> Iterator[tuple[int, dict[str, float]]]:
    for index in range(len(run[ACCURACY])):
        values = {name: float(curve[index]) for name, curve in run.items() if name != without}
        yield index + 1, {TRUNCATED: 0.0, **values}


def halving_update(run: Run) -> int:
    return int(np.argmax(run[ACCURACY] <= run[ACCURACY].max() / 2)) + 1


@pytest.mark.parametrize("name", list(healthy_runs()))
def test_healthy_runs_of_500_updates_raise_no_alarm(name: str) -> None:
    for seed in range(4):
        run = with_noise(healthy_runs()[name], seed=seed)
        assert alarms_of(run) == []
        if seed < 2:
            assert alarms_of(run, without=ACCURACY) == []


@pytest.mark.parametrize(
    "run",
    [
        collapse(100),
        collapse(300),
        decline(200, certainty=0.2),
        decline(200, certainty=0.1, num_healthy=150),
        decline(400, certainty=0.2),
        ramble(),
    ],
    ids=["fast after 100", "fast after 300", "slow", "slow after 150", "very slow", "ramble"],
)
def test_collapses_raise_an_alarm_before_accuracy_has_halved(run: Run) -> None:
    for seed in range(8):
        alarms = alarms_of(with_noise(run, seed=seed))
        assert alarms, f"seed {seed}"
        assert alarms[0].update <= halving_update(run), f"seed {seed}: {alarms[0].message}"


@pytest.mark.parametrize("run", [collapse(0), sigmoid_collapse()], ids=["linear", "sigmoid"])
def test_fast_collapses_from_the_first_update_on_are_seen_as_early_as_noise_allows(run: Run) -> None:
    """Accuracy halves by update 22 or 25: with two windows of eight, no test sees all of them in time."""
    first = [alarms_of(with_noise(run, seed=seed))[0].update for seed in range(20)]
    assert np.mean(np.array(first) <= halving_update(run)) >= 0.9
    assert max(first) <= halving_update(run) + 5


def test_without_labels_length_and_repetition_still_speak() -> None:
    for seed in range(4):
        assert "length_collapse" in {a.rule for a in alarms_of(with_noise(collapse(50), seed=seed), without=ACCURACY)}
        rules = {alarm.rule for alarm in alarms_of(with_noise(ramble(), seed=seed), without=ACCURACY)}
        assert rules >= {"length_runaway", "repetition", "certainty_up_distinct_down"}


def test_without_certainty_the_rules_that_need_it_are_off() -> None:
    rules = {alarm.rule for alarm in alarms_of(with_noise(ramble(), seed=0), without=LEARNER_CERTAINTY)}
    assert rules == {"length_runaway", "repetition"}


def test_another_style_is_no_alarm_where_accuracy_has_risen() -> None:
    way = np.linspace(0.0, 1.0, 100)
    better = curves(0.2 + 0.4 * way, 10.5 * (1 + 0.2 * way), distinct=0.6, length=31 * (1 + way))
    assert alarms_of(with_noise(better, seed=0)) == []
    rules = {alarm.rule for alarm in alarms_of(with_noise(better, seed=0), without=ACCURACY)}
    assert rules == {"length_runaway", "certainty_up_distinct_down"}


def exact(length: float, *, truncated: float = 0.0) -> Mapping[str, float]:
    return {LENGTH: length, TRUNCATED: truncated}


def test_an_alarm_is_told_once_and_ends_half_of_the_way_back() -> None:
    guards = HackingGuards()
    lengths = [30.0, 31.0] * 10 + [15.0, 16.0] * 40 + [22.0] * 10 + [26.0] * 10 + [15.0] * 10
    told: dict[int, str] = {}
    is_on = [False]
    switches = []
    for update, length in enumerate(lengths, start=1):
        report = guards.observe(exact(length), update=update)
        told |= {alarm.update: alarm.message for alarm in report.new_alarms}
        is_on.append(report.metrics["guard/length_collapse"] == 1.0)
        assert [alarm.rule for alarm in report.alarms] == ["length_collapse"] * is_on[-1]
        if is_on[-1] != is_on[-2]:
            switches.append(update)
    # on when five of the latest eight are short: 21.1 is 31 % below 30.5; off above 25.8: eight times 26, not seven
    # times with one 22; on again with four of 15
    assert switches == [25, 118, 124]
    assert list(told) == [25, 124]
    assert told[25] == "length_collapse at update 25: since update 8 mean length in tokens fell from 30.5 to 21.1."


def test_truncated_completions_are_a_runaway() -> None:
    guards = HackingGuards()
    for update in range(1, 41):
        report = guards.observe(exact(30.0, truncated=0.0 if update <= 20 else 0.5), update=update)
        if report.new_alarms:
            assert update == 23  # three of the latest eight; with two the jump itself still looks like noise
            assert "cut at the length limit rose from 0 to 0.188" in report.new_alarms[0].message
    assert [alarm.rule for alarm in report.alarms] == ["length_runaway"]
    assert report.metrics == {f"guard/{rule}": float(rule == "length_runaway") for rule in RULES}
    assert tuple(metric.name for metric in GUARD_METRICS) == tuple(report.metrics)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped() -> None:
    run = with_noise(collapse(60), seed=3)
    whole, guards = HackingGuards(), HackingGuards()
    for update, values in updates_of(run):
        expected = whole.observe(values, update=update)
        assert guards.observe(values, update=update) == expected
        state = json.loads(json.dumps(guards.state(), allow_nan=False))
        guards = HackingGuards()
        guards.restore(state)
    assert expected.alarms
    assert len(json.dumps(whole.state())) < 50_000


def test_the_reward_is_watched_where_it_is_certainty_and_gaps_are_bridged() -> None:
    guards = HackingGuards()
    run = with_noise(collapse(40), seed=0)
    alarms: list[Alarm] = []
    for update, values in updates_of(run):
        values[REWARD_CERTAINTY] = values.pop(LEARNER_CERTAINTY)
        values[LEARNER_CERTAINTY] = 1000.0 * update  # would be an alarm at once
        if update % 3 == 0:
            values[ACCURACY] = float("nan")
        if update % 4 == 0:
            del values[REWARD_CERTAINTY]
        alarms += guards.observe(values, update=update).new_alarms
    assert guards.state()["certainty_source"] == REWARD_CERTAINTY
    assert {alarm.rule for alarm in alarms} == {"certainty_up_accuracy_down", "length_collapse"}
    assert all(alarm.update > 40 for alarm in alarms)


def test_updates_have_to_come_in_order_and_thresholds_to_make_sense() -> None:
    guards = HackingGuards()
    guards.observe(exact(30.0), update=5)
    with pytest.raises(ValueError, match="update 5 does not follow update 5"):
        guards.observe(exact(30.0), update=5)
    with pytest.raises(ValueError, match="length_fall must be > 0"):
        GuardThresholds(length_fall=0.0)
    with pytest.raises(ValueError, match="look_back"):
        GuardThresholds(look_back=20)
    strict = GuardThresholds(length_fall=0.1, since_start_z=1.0)
    assert alarms_of(with_noise(healthy_runs()["learns, shorter"], seed=0), thresholds=strict, without=ACCURACY)
