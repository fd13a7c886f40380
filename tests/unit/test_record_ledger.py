"""What becomes a task run of its own, and where that ends."""

from __future__ import annotations

from typing import Any

import pytest

from evolve_tasks.options import RecordMode
from evolve_tasks.record_ledger import EVENTS, LENT_TO, UNBOUNDED, RecordLedger


def ledger_of(
    mode: RecordMode,
    budget: int,
    sources_known: int | None,
    per_minute: int = 10**9,
    each: int = 2,
) -> RecordLedger:
    """A ledger at a time that stands still."""
    return RecordLedger(mode, budget, sources_known, each, per_minute, clock=lambda: 0.0)


def test_items_are_all_recorded_whatever_the_budget() -> None:
    ledger = ledger_of("items", 0, 10**9)
    for _ in range(5):
        assert ledger.each_source(1_000, True)
        assert ledger.each_item(10**6, True, expected=10**9)
    assert not ledger.unit(True)
    assert ledger.item_allowance == UNBOUNDED
    assert ledger.lend(0) == (UNBOUNDED, 0.0)


def test_sources_records_each_source_and_no_item() -> None:
    ledger = ledger_of("sources", 10_000, 3)
    assert ledger.each_source(50, True)
    assert not ledger.each_item(1, True)
    assert not ledger.unit(True)
    assert ledger.item_allowance == 0
    assert ledger.lend(0) == (0, 0.0)


def test_batches_records_units_alone() -> None:
    ledger = ledger_of("batches", 10_000, 3)
    assert not ledger.each_source(1, True)
    assert not ledger.each_item(1, True)
    assert ledger.unit(True)
    assert ledger.item_allowance == 0
    assert ledger.lend(0) == (0, UNBOUNDED)


@pytest.mark.parametrize("mode", ["items", "sources", "auto", "batches"])
def test_a_plain_function_is_never_a_task_run_of_its_own(mode: str) -> None:
    ledger = ledger_of(mode, 500, 3)  # type: ignore[arg-type]
    before = ledger.item_allowance
    assert not ledger.each_source(1, False)
    assert not ledger.each_item(1, False)
    assert ledger.item_allowance == before, "and costs nothing"


def test_auto_records_singly_until_the_budget_is_spent() -> None:
    ledger = ledger_of("auto", 10, None)
    assert ledger.each_source(1, True)
    assert ledger.each_item(6, True)
    assert not ledger.each_item(4, True), "three are left"
    assert ledger.each_item(3, True)
    assert not ledger.each_item(1, True)
    assert not ledger.each_source(1, True)
    assert ledger.unit(True)
    assert ledger.item_allowance == 0
    assert ledger.degraded == (
        "the 10 task runs of record_budget are spent, or set aside for sources under way"
    )


@pytest.mark.parametrize(
    ("budget", "sources", "all_units"),
    [(10, 5, False), (10, 6, True), (0, 0, False), (0, 1, True), (10, None, False)],
)
def test_auto_does_not_begin_singly_where_the_sources_alone_do_not_fit(
    budget: int, sources: int | None, all_units: bool
) -> None:
    ledger = ledger_of("auto", budget, sources)
    assert ledger.all_units == all_units
    assert ledger.each_source(1, True) == (not all_units and budget > 0)


def test_auto_goes_over_to_units_for_good_where_what_is_expected_does_not_fit() -> None:
    ledger = ledger_of("auto", 100, None)
    assert ledger.each_item(10, True, expected=90)
    assert not ledger.each_item(10, True, expected=91)
    assert not ledger.each_item(1, True, expected=0)
    assert ledger.all_units
    assert not ledger.each_source(1, True)


def test_spent_elsewhere_is_spent() -> None:
    ledger = ledger_of("auto", 10, None)
    ledger.spent(15)
    assert ledger.item_allowance == 0
    assert not ledger.each_item(1, True)


def test_all_that_is_lent_never_exceeds_the_budget() -> None:
    ledger = ledger_of("auto", 10, None)
    lent = [ledger.lend(unit)[0] for unit in range(20)]
    assert lent[0] == -(-10 // LENT_TO)
    assert sum(lent) == 10
    assert lent == sorted(lent, reverse=True)


def test_what_was_lent_and_not_used_comes_back() -> None:
    ledger = ledger_of("auto", 100, None)
    lent, _ = ledger.lend(0)
    ledger.give_back(0, items=5, batches=0, unseen=0)
    assert ledger.item_allowance == 95
    ledger.give_back(0, items=0, batches=0, unseen=0)
    assert ledger.item_allowance == 95, "it was given back before"
    assert ledger.lend(1)[0] < lent + 1
    ledger.give_back(1, items=80, batches=0, unseen=0)
    assert ledger.item_allowance <= 95, "failures are recorded beyond what was lent"


def test_items_of_a_plain_function_leave_the_budget_to_the_sources() -> None:
    ledger = ledger_of("auto", 100, 80, each=1)
    assert not ledger.each_item(1_000, False, expected=5_000)
    assert all(ledger.each_source(1, True) for _ in range(80))
    assert ledger.degraded is None
    assert ledger_of("auto", 100, 80).all_units


def test_items_that_are_expected_and_do_not_fit_end_single_runs() -> None:
    ledger = ledger_of("auto", 100, None)
    ledger.foresee(100)
    assert not ledger.all_units
    ledger.foresee(101)
    assert ledger.all_units
    assert ledger.lend(0)[0] == 0


# -- the pace ------------------------------------------------------------------------------------


def test_the_pace_is_kept_singly_and_by_the_batch_and_comes_back() -> None:
    now = [0.0]
    ledger = RecordLedger("auto", 1_000, None, 2, 120 * EVENTS, clock=lambda: now[0])
    assert ledger.each_item(59, True)
    assert not ledger.each_item(2, True)
    assert ledger.degraded is None, "nothing was recorded by the batch yet"
    assert ledger.unit(True)
    assert ledger.degraded == f"the {120 * EVENTS} events a minute of events_per_minute are spent"
    assert not ledger.unit(True)
    assert ledger.unseen_units == 1
    now[0] += 10.0
    assert ledger.item_allowance == 10, "one a second"
    now[0] += 3_600.0
    assert ledger.item_allowance == 60, "half of a minute's worth, as much comes in a minute"


@pytest.mark.parametrize("mode", ["items", "batches", "sources"])
def test_what_was_asked_for_has_no_pace(mode: RecordMode) -> None:
    ledger = ledger_of(mode, 0, None, per_minute=EVENTS)
    assert [ledger.each_item(1, True) for _ in range(5)] == [mode == "items"] * 5
    assert [ledger.unit(True) for _ in range(5)] == [mode == "batches"] * 5
    assert ledger.lend(0)[1] == (UNBOUNDED if mode == "batches" else 0)
    assert (ledger.degraded, ledger.unseen_units) == (None, 0)


def test_a_unit_of_a_plain_function_costs_nothing() -> None:
    ledger = ledger_of("auto", 0, None, per_minute=2 * EVENTS)
    assert all(ledger.unit(False) for _ in range(5))
    assert ledger.unit(True)


def test_what_is_lent_shares_the_pace() -> None:
    ledger = ledger_of("auto", 1_000, None, per_minute=100 * EVENTS)
    rates = [ledger.lend(unit)[1] for unit in range(10)]
    assert rates[0] == 100 / LENT_TO
    assert rates[-1] == 100 / 10
    for unit in range(10):
        ledger.give_back(unit, items=0, batches=1, unseen=2)
    assert ledger.item_allowance == 40
    assert ledger.unseen_units == 20
    assert ledger.degraded == (
        "the 1,000 task runs of record_budget are spent, or set aside for sources under way"
    )


def test_what_a_lost_unit_was_lent_comes_back() -> None:
    ledger = ledger_of("auto", 100, None)
    ledger.lend(0)
    ledger.give_back(0)
    ledger.give_back(1)
    assert ledger.item_allowance == 100
    assert ledger.degraded is None


def test_plain_functions_are_never_said_to_be_degraded() -> None:
    ledger = ledger_of("auto", 10, 1_000)
    for _ in range(20):
        assert not ledger.each_item(1, False, expected=1_000)
        assert ledger.unit(False)
    assert ledger.degraded is None


def test_what_is_part_of_another_task_run_costs_nothing() -> None:
    ledger = ledger_of("auto", 0, None, per_minute=2 * EVENTS)
    for _ in range(5):
        assert ledger.unit(True)
        ledger.shared()


@pytest.mark.parametrize(
    ("mode", "of_source", "of_many"),
    [
        ("items", True, True),
        ("batches", True, True),
        ("sources", True, False),
        ("auto", True, True),
    ],
)
def test_what_is_done_beside_the_stages(mode: Any, of_source: bool, of_many: bool) -> None:
    ledger = ledger_of(mode, 500, 3)
    assert ledger.beside(True, of_source=True) is of_source
    assert ledger.beside(True, of_source=False) is of_many
    assert not ledger.beside(False, of_source=True)
    assert ledger.degraded is None, "items are recorded as they were"


def test_what_is_done_for_each_source_has_a_budget_in_auto() -> None:
    ledger = ledger_of("auto", 2, None)
    assert [ledger.beside(True, of_source=True) for _ in range(3)] == [True, True, False]
    assert ledger.beside(True, of_source=False)
