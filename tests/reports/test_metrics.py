"""Metric names are checked, reductions are what they say, and families match one word."""

import math

import pytest

from system.metrics import X_AXIS_METRICS, MetricDefinition, MetricSet, MetricTable
from system.records import Metric
from system.reports.metrics import SYSTEM_METRICS

TABLE = MetricTable(
    (
        MetricDefinition(name="test/mean", description="", reduction="mean"),
        MetricDefinition(name="test/sum", description="", reduction="sum"),
        MetricDefinition(name="test/max", description="", reduction="max"),
        MetricDefinition(name="test/last", description="", reduction="last"),
    ),
    (MetricDefinition(name="test/invalid_<reason>", description="", reduction="sum"),),
)


def test_each_reduction() -> None:
    metrics = MetricSet(TABLE)
    for name in ("test/sum", "test/mean", "test/max", "test/last"):
        metrics.extend([Metric(name=name, value=value) for value in (2.0, 5.0, -1.0)])
    assert metrics.reduce() == {"test/last": -1.0, "test/max": 5.0, "test/mean": 2.0, "test/sum": 6.0}
    assert list(metrics.reduce()) == sorted(metrics.reduce())
    metrics.clear()
    assert metrics.reduce() == {}


def test_mean_is_over_weights() -> None:
    metrics = MetricSet(TABLE)
    metrics.add("test/mean", 1.0, weight=30)
    metrics.add("test/mean", 5.0, weight=10)
    assert metrics.reduce() == {"test/mean": 2.0}


def test_mean_of_nothing_and_maximum_with_nan_are_nan() -> None:
    metrics = MetricSet(TABLE)
    metrics.add("test/mean", 1.0, weight=0)
    for value in (1.0, math.nan, 2.0):
        metrics.add("test/max", value)
    assert all(math.isnan(value) for value in metrics.reduce().values())


def test_misspelled_name_is_an_error() -> None:
    metrics = MetricSet(TABLE)
    with pytest.raises(KeyError, match="test/meen' is not declared"):
        metrics.add("test/meen", 1.0)


def test_family_matches_one_word_only() -> None:
    assert TABLE.find("test/invalid_timeout").name == "test/invalid_<reason>"
    for name in ("test/invalid_", "test/invalid_a/b", "test/invalid_<reason>", "other/invalid_timeout"):
        with pytest.raises(KeyError):
            TABLE.find(name)


def test_name_declared_twice_is_an_error() -> None:
    definition = MetricDefinition(name="test/mean", description="")
    with pytest.raises(ValueError, match="declared twice"):
        MetricTable((definition,), (definition,))


@pytest.mark.parametrize("name", ["mean", "Test/mean", "test/", "test/mean value", ""])
def test_name_without_area_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="area/name_unit"):
        MetricDefinition(name=name, description="")


def test_clock_units_are_not_reproducible() -> None:
    table = MetricTable(SYSTEM_METRICS)
    not_reproducible = (
        "time/train_seconds",
        "weight_sync/seconds",
        "rollout/tokens_per_second",
        "queue/ready_groups",
        "reward/verifier_seconds",
    )
    assert not any(table.find(name).is_reproducible for name in not_reproducible)
    assert all(table.find(name).is_reproducible for name in ("reward/mean", "ledger/dropped_stale", "eval/pass_at_8"))


def test_every_system_metric_has_a_description_and_an_x_axis() -> None:
    table = MetricTable(SYSTEM_METRICS)
    assert all(definition.description.endswith(".") for definition in table.definitions())
    assert all(table.find(name).reduction == "last" for name in X_AXIS_METRICS.values())
