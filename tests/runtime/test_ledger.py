"""The ledger accounts for every group and refuses transitions that no correct controller makes."""

import json
from collections.abc import Callable

import pytest

from system.runtime.ledger import Ledger, LedgerError


def ledger_with_one_group_in_each_state() -> Ledger:
    ledger = Ledger()
    for group_id in range(6):
        ledger.lease(group_id)
    for group_id in range(1, 6):
        ledger.mark_generated(group_id)
    for group_id in range(2, 6):
        ledger.mark_scored(group_id)
    ledger.mark_trained(3)
    ledger.drop(4, reason="stale")
    ledger.drop(5, reason="all_invalid")
    return ledger


def test_totals_count_each_transition() -> None:
    ledger = ledger_with_one_group_in_each_state()
    totals = ledger.totals()
    assert totals.as_json() == {
        "leased": 6,
        "generated": 5,
        "scored": 4,
        "trained": 1,
        "regenerated": 0,
        "dropped": 2,
        "in_flight": 3,
        "dropped_by_reason": {"all_invalid": 1, "stale": 1},
    }
    assert totals.is_balanced
    assert ledger.in_flight_group_ids() == (0, 1, 2)
    assert [ledger.num_in_state(state) for state in ("leased", "generated", "scored")] == [1, 1, 1]


def test_regenerated_group_keeps_its_lease() -> None:
    ledger = Ledger()
    ledger.lease(0)
    ledger.mark_generated(0)
    ledger.regenerate(0)
    ledger.mark_generated(0)
    ledger.mark_scored(0)
    ledger.mark_trained(0)
    totals = ledger.totals()
    assert (totals.leased, totals.generated, totals.regenerated, totals.trained) == (1, 2, 1, 1)
    assert totals.is_balanced


def test_what_is_in_flight_at_the_end_is_dropped_with_its_reason() -> None:
    ledger = ledger_with_one_group_in_each_state()
    assert ledger.drop_in_flight(reason="run_ended") == 3
    totals = ledger.totals()
    assert totals.in_flight == 0
    assert totals.leased == totals.trained + totals.dropped
    assert totals.dropped_by_reason["run_ended"] == 3


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda ledger: ledger.lease(5), "group 5 cannot be leased: group 5 was leased before it"),
        (lambda ledger: ledger.mark_generated(1), "group 1 is generated: mark_generated needs leased"),
        (lambda ledger: ledger.mark_scored(0), "group 0 is leased: mark_scored needs generated"),
        (lambda ledger: ledger.mark_trained(1), "group 1 is generated: mark_trained needs scored"),
        (lambda ledger: ledger.mark_trained(3), "group 3 is not in flight: mark_trained needs scored"),
        (lambda ledger: ledger.regenerate(2), "group 2 is scored: regenerate needs leased or generated"),
        (lambda ledger: ledger.drop(4, reason="stale"), "group 4 is not in flight: drop .stale. needs leased or"),
        (lambda ledger: ledger.mark_generated(99), "group 99 is not in flight"),
    ],
)
def test_illegal_transition_raises_and_changes_nothing(attempt: Callable[[Ledger], None], message: str) -> None:
    ledger = ledger_with_one_group_in_each_state()
    before = ledger.totals()
    with pytest.raises(LedgerError, match=message):
        attempt(ledger)
    assert ledger.totals() == before


def test_lost_transition_shows_as_imbalance() -> None:
    ledger = ledger_with_one_group_in_each_state()
    ledger._states.pop(0)  # a group that vanished without trained or dropped
    assert not ledger.is_balanced


def test_checkpoint_leases_what_was_in_flight_again() -> None:
    ledger = ledger_with_one_group_in_each_state()
    restored = Ledger.restore(json.loads(json.dumps(ledger.state())))
    assert restored.in_flight_group_ids() == (0, 1, 2)
    assert restored.num_in_state("leased") == 3
    assert restored.totals().regenerated == 3
    assert restored.is_balanced
    assert restored.last_group_id == 5
    restored.mark_generated(2)
    with pytest.raises(LedgerError, match="was leased before"):
        restored.lease(5)
