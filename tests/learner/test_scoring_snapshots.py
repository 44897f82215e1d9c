"""Which weights score, worked out by hand for a model of one number; and that a resumed rule goes on as before."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learner.scoring_snapshots import AveragedSnapshot, LaggedSnapshots, NewestSnapshot, ScoringSnapshots
from system.errors import CheckpointError
from system.weights.digest import checked_buckets
from system.weights.manifest import WeightsManifest
from tests.weights.memory_store import MemoryStore


def publish(rule: ScoringSnapshots, store: MemoryStore, version: int, value: float) -> tuple[int, float]:
    """The version and the weight that score after `value` was published as `version`."""
    manifest = store.publish({"w": torch.tensor([value])}, policy_version=version)
    rule.start(version)
    buffers = [torch.tensor(each) for each in store.fetch(manifest.references)]
    for bucket, buffer in zip(manifest.buckets, buffers, strict=True):
        rule.add(bucket, buffer)
    return held(rule.choose(manifest) or manifest, store)


def held(manifest: WeightsManifest, store: MemoryStore) -> tuple[int, float]:
    buffers = (torch.tensor(each) for each in store.fetch(manifest.references))
    ((_, weight),) = next(checked_buckets(buffers, manifest))
    return manifest.policy_version, float(weight)


def test_online_scores_with_what_was_published() -> None:
    assert publish(NewestSnapshot(), MemoryStore(), 3, 0.5) == (3, 0.5)


def test_lagged_scores_with_the_version_k_before_or_the_oldest_known() -> None:
    store = MemoryStore()
    rule = LaggedSnapshots(lag_versions=2, put=store.put, fetch=store.fetch)
    scored = [publish(rule, store, version, 10.0 * version) for version in range(5)]
    assert scored == [(0, 0.0), (0, 0.0), (0, 0.0), (1, 10.0), (2, 20.0)]


def test_ema_moves_by_one_minus_decay_at_every_version_and_has_no_canary() -> None:
    store = MemoryStore()
    rule = AveragedSnapshot(decay=0.75, put=store.put)
    scored = [publish(rule, store, version, value) for version, value in enumerate((1.0, 5.0, 2.0))]
    assert scored == [(0, 1.0), (1, 2.0), (2, 2.0)]  # 0.75 * 1 + 0.25 * 5 = 2; 0.75 * 2 + 0.25 * 2 = 2
    manifest = store.publish({"w": torch.tensor([2.0])}, policy_version=3)
    rule.start(3)
    chosen = rule.choose(manifest)
    assert chosen is not None
    assert chosen.canary_logprobs is None


MakeRule = Callable[[MemoryStore], ScoringSnapshots]


def make_lagged(store: MemoryStore) -> ScoringSnapshots:
    return LaggedSnapshots(lag_versions=2, put=store.put, fetch=store.fetch)


def make_average(store: MemoryStore) -> ScoringSnapshots:
    return AveragedSnapshot(decay=0.5, put=store.put)


@pytest.mark.parametrize("make", [make_lagged, make_average])
def test_a_version_that_is_published_twice_counts_once(make: MakeRule) -> None:
    store = MemoryStore()
    once, twice = make(store), make(store)
    for version in range(3):
        publish(once, store, version, float(version))
        publish(twice, store, version, float(version))
    publish(twice, store, 2, 2.0)
    assert publish(once, store, 3, 9.0) == publish(twice, store, 3, 9.0)


@pytest.mark.parametrize("make", [make_lagged, make_average])
def test_a_resumed_rule_goes_on_as_the_one_that_was_saved(make: MakeRule, tmp_path: Path) -> None:
    store, other_store = MemoryStore(), MemoryStore()
    first, second = make(store), make(other_store)
    for version in range(3):
        publish(first, store, version, float(version))
    write = first.capture(str(tmp_path / "scorer"))
    expected = [publish(first, store, version, 7.0 * version) for version in (3, 4)]
    files = write()  # while the rule went on
    assert sorted(files) == sorted((tmp_path / "scorer").iterdir())
    second.load(str(tmp_path / "scorer"))
    publish(second, other_store, 2, 2.0)  # a resumed run publishes its version once more
    assert [publish(second, other_store, version, 7.0 * version) for version in (3, 4)] == expected


@pytest.mark.parametrize(("make", "mode"), [(make_lagged, "lagged"), (make_average, "ema")])
def test_a_checkpoint_of_another_mode_is_refused(make: MakeRule, mode: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"scorer.mode={mode}"):
        make(MemoryStore()).load(str(tmp_path))
