"""The sentence names the largest wait, its pool and what else took long; numbers are literal."""

from system.reports.bottleneck import bottleneck


def test_the_largest_wait_is_named_with_its_pool() -> None:
    metrics = {
        "learner/busy_fraction": 0.403,
        "wait/scoring_fraction": 0.412,
        "wait/generation_fraction": 0.02,
        "wait/weight_sync_fraction": 0.12,
        "wait/straggler_fraction": 0.1,
        "reward/busy_fraction": 1.0,
        "reward/call_p99_seconds": 3.21,
        "rollout/busy_fraction": 0.5,
        "rollout/call_p99_seconds": 100.0,
    }
    assert bottleneck(metrics) == (
        "learner waited 41 % for scoring (p99 3.2 s, reward workers busy 100 %), 12 % for weight sync; trained 40 %"
    )


def test_of_two_kinds_of_scorers_the_busier_one_is_named() -> None:
    metrics = {
        "learner/busy_fraction": 0.3,
        "wait/scoring_fraction": 0.7,
        "reward/busy_fraction": 0.1,
        "reward/call_p99_seconds": 0.02,
        "scorer/busy_fraction": 0.98,
        "scorer/call_p99_seconds": 1234.5,
    }
    assert bottleneck(metrics) == (
        "learner waited 70 % for scoring (p99 1,234 s, scoring replicas busy 98 %); trained 30 %"
    )


def test_a_single_slow_group_is_said() -> None:
    metrics = {
        "learner/busy_fraction": 0.5,
        "wait/generation_fraction": 0.5,
        "wait/straggler_fraction": 0.25,
        "rollout/busy_fraction": 0.4,
        "rollout/call_p99_seconds": 12.0,
    }
    assert bottleneck(metrics) == (
        "learner waited 50 % for generation (p99 12 s, rollout workers busy 40 %, a single group for 25 %); "
        "trained 50 %"
    )


def test_a_learner_that_never_waits_is_the_bottleneck_itself() -> None:
    metrics = {"learner/busy_fraction": 0.97, "wait/generation_fraction": 0.02, "wait/other_fraction": 0.01}
    assert bottleneck(metrics) == "learner trained 97 % of the step; nothing else took 5 %"


def test_a_wait_without_workers_is_named_alone() -> None:
    assert bottleneck({"learner/busy_fraction": 0.2, "wait/evaluation_fraction": 0.8}) == (
        "learner waited 80 % for evaluation; trained 20 %"
    )


def test_without_shares_there_is_no_sentence() -> None:
    assert bottleneck({"reward/mean": 0.2}) is None
