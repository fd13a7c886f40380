"""What becomes a task run of its own, and where that ends."""

from __future__ import annotations

import pytest

from evolve_tasks.record_ledger import LENT_TO, UNBOUNDED, RecordLedger


def test_items_are_all_recorded_whatever_the_budget() -> None:
    ledger = RecordLedger("items", 0, 10**9)
    for _ in range(5):
        assert ledger.each_source(1_000, True)
        assert ledger.each_item(10**6, True, expected=10**9)
    assert not ledger.in_units
    assert ledger.item_allowance == ledger.lend(0) == UNBOUNDED


def test_sources_records_each_source_and_no_item() -> None:
    ledger = RecordLedger("sources", 10_000, 3)
    assert ledger.each_source(50, True)
    assert not ledger.each_item(1, True)
    assert not ledger.in_units
    assert ledger.item_allowance == ledger.lend(0) == 0


def test_batches_records_units_alone() -> None:
    ledger = RecordLedger("batches", 10_000, 3)
    assert not ledger.each_source(1, True)
    assert not ledger.each_item(1, True)
    assert ledger.in_units
    assert ledger.item_allowance == ledger.lend(0) == 0


@pytest.mark.parametrize("mode", ["items", "sources", "auto", "batches"])
def test_a_plain_function_is_never_a_task_run_of_its_own(mode: str) -> None:
    ledger = RecordLedger(mode, 500, 3)  # type: ignore[arg-type]
    before = ledger.item_allowance
    assert not ledger.each_source(1, False)
    assert not ledger.each_item(1, False)
    assert ledger.item_allowance == before, "and costs nothing"


def test_auto_records_singly_until_the_budget_is_spent() -> None:
    ledger = RecordLedger("auto", 10, None)
    assert ledger.each_source(1, True)
    assert ledger.each_item(6, True)
    assert not ledger.each_item(4, True), "three are left"
    assert ledger.each_item(3, True)
    assert not ledger.each_item(1, True)
    assert not ledger.each_source(1, True)
    assert ledger.in_units
    assert ledger.item_allowance == 0


@pytest.mark.parametrize(
    ("budget", "sources", "all_units"),
    [(10, 5, False), (10, 6, True), (0, 0, False), (0, 1, True), (10, None, False)],
)
def test_auto_does_not_begin_singly_where_the_sources_alone_do_not_fit(
    budget: int, sources: int | None, all_units: bool
) -> None:
    ledger = RecordLedger("auto", budget, sources)
    assert ledger.all_units == all_units
    assert ledger.each_source(1, True) == (not all_units and budget > 0)


def test_auto_goes_over_to_units_for_good_where_what_is_expected_does_not_fit() -> None:
    ledger = RecordLedger("auto", 100, None)
    assert ledger.each_item(10, True, expected=90)
    assert not ledger.each_item(10, True, expected=91)
    assert not ledger.each_item(1, True, expected=0)
    assert ledger.all_units
    assert not ledger.each_source(1, True)


def test_spent_elsewhere_is_spent() -> None:
    ledger = RecordLedger("auto", 10, None)
    ledger.spent(15)
    assert ledger.item_allowance == 0
    assert not ledger.each_item(1, True)


def test_all_that_is_lent_never_exceeds_the_budget() -> None:
    ledger = RecordLedger("auto", 10, None)
    lent = [ledger.lend(unit) for unit in range(20)]
    assert lent[0] == -(-10 // LENT_TO)
    assert sum(lent) == 10
    assert lent == sorted(lent, reverse=True)


def test_what_was_lent_and_not_used_comes_back() -> None:
    ledger = RecordLedger("auto", 100, None)
    lent = ledger.lend(0)
    ledger.give_back(0, used=5)
    assert ledger.item_allowance == 95
    ledger.give_back(0, used=0)
    assert ledger.item_allowance == 95, "it was given back before"
    assert ledger.lend(1) < lent + 1
    ledger.give_back(1, used=80)
    assert ledger.item_allowance <= 95, "failures are recorded beyond what was lent"


def test_items_that_are_expected_and_do_not_fit_end_single_runs() -> None:
    ledger = RecordLedger("auto", 100, None)
    ledger.foresee(100)
    assert not ledger.all_units
    ledger.foresee(101)
    assert ledger.all_units
    assert ledger.lend(0) == 0
