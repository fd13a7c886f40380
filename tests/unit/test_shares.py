"""`nested` divides the window between sources, and the failure policy with it."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from evolve_tasks.core.budget import Bounded, FailFast, FailureBudget, Finish, Ignore
from evolve_tasks.strategies.nested import Shares, _within_source, shares


def given(in_flight: int, threads: int) -> Shares:
    share = shares(in_flight, threads)
    assert share is not None
    return share


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 4, 7, 8, 16, 33, 64])
def test_sources_times_items_stays_within_the_bound_that_was_given(threads: int) -> None:
    for in_flight in range(1, 401):
        share = given(in_flight, threads)
        case = f"in_flight={in_flight}, threads={threads}: {share}"
        assert share.units >= 1, case
        assert share.items >= 1, f"no room for an item: {case}"
        assert share.units * share.items <= in_flight, case
        # Two for each thread: more only make the share of each smaller.
        assert share.units <= max(1, 2 * threads), f"too many units: {case}"
        wasted = in_flight - share.units * share.items
        assert wasted < share.units, f"{wasted} places are nobody's: {case}"


@hypothesis.given(st.integers(1, 10**6), st.integers(0, 10**4))
def test_the_bound_holds_for_any_numbers(in_flight: int, threads: int) -> None:
    share = given(in_flight, threads)
    assert share.units >= 1
    assert share.items >= 1
    assert share.units * share.items <= in_flight


@pytest.mark.parametrize(
    ("in_flight", "threads", "expected"),
    [
        (12, 2, Shares(units=4, items=3)),
        (12, 4, Shares(units=8, items=1)),
        (24, 4, Shares(units=8, items=3)),
        (3, 8, Shares(units=3, items=1)),
        (1, 8, Shares(units=1, items=1)),
        (5, 0, Shares(units=1, items=5)),
    ],
)
def test_two_sources_for_each_thread_if_each_has_room_for_an_item(
    in_flight: int, threads: int, expected: Shares
) -> None:
    assert shares(in_flight, threads) == expected


@pytest.mark.parametrize("threads", [0, 1, 64])
def test_without_a_bound_nothing_is_divided(threads: int) -> None:
    # One source alone may then keep every thread busy.
    assert shares(None, threads) is None


@pytest.mark.parametrize(
    ("budget", "within"),
    [
        (Finish(), Finish()),
        (FailFast(), FailFast()),
        (Ignore(), Ignore()),
        (Bounded(3, None), Bounded(3, None)),
        # A share is one of the whole run: a source alone must not judge it.
        (Bounded(3, 0.5), Bounded(3, None)),
        (Bounded(None, 0.5), Finish()),
        (Bounded(0, None), Bounded(0, None)),
    ],
)
def test_a_source_judges_what_it_can_judge_alone(
    budget: FailureBudget, within: FailureBudget
) -> None:
    assert _within_source(budget) == within
