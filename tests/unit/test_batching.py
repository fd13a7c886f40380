"""How much goes into a unit: the two formulas, the durations, and what comes of them in time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve_tasks.core.batching import (
    BRIEF_S,
    INLINE_S,
    MEMORY,
    SMALLEST_S,
    TARGET_S,
    Durations,
    inline_items,
    unit_size,
)
from evolve_tasks.core.filling import AHEAD
from tests.unit.workers import OVERHEAD_S, Ran, Source, least_s, work_on

means = st.floats(0, 100, allow_nan=False)
lefts = st.none() | st.integers(0, 10**7)
threads = st.integers(0, 500)
ceilings = st.integers(1, 10**6)

# -- the size of a unit --------------------------------------------------------------------------


@given(st.none() | means, lefts, threads, ceilings)
def test_a_unit_has_an_item_at_least_and_the_ceiling_at_most(
    mean_s: float | None, left: int | None, threads: int, ceiling: int
) -> None:
    assert 1 <= unit_size(mean_s, left, threads, ceiling) <= ceiling


@given(means, means, lefts, threads, ceilings)
def test_longer_items_make_no_larger_units(
    one: float, other: float, left: int | None, threads: int, ceiling: int
) -> None:
    short, long = sorted((one, other))
    assert unit_size(long, left, threads, ceiling) <= unit_size(short, left, threads, ceiling)


@given(means, st.integers(0, 10**7), st.integers(0, 10**7), threads, ceilings)
def test_less_that_is_left_makes_no_larger_units(
    mean_s: float, one: int, other: int, threads: int, ceiling: int
) -> None:
    few, many = sorted((one, other))
    sizes = [unit_size(mean_s, left, threads, ceiling) for left in (few, many, None)]
    assert sizes == sorted(sizes)


@given(means, lefts, threads, ceilings)
def test_a_unit_is_no_longer_than_it_aims_at(
    mean_s: float, left: int | None, threads: int, ceiling: int
) -> None:
    size = unit_size(mean_s, left, threads, ceiling)
    most_s = TARGET_S if mean_s > BRIEF_S else 2 * TARGET_S
    assert size == 1 or size * mean_s <= most_s * 1.000001


@pytest.mark.parametrize("mean_s", [TARGET_S * 0.51, TARGET_S, 3.0, 3600.0])
def test_long_items_run_alone(mean_s: float) -> None:
    assert unit_size(mean_s, 10**6, 1, 10**6) == 1


def test_as_long_as_nothing_is_known_items_run_alone() -> None:
    assert unit_size(None, 10**6, 1, 10**6) == 1


def test_units_shrink_towards_the_end_and_not_below_what_is_worth_its_way() -> None:
    sizes = [unit_size(0.001, left, 4, 10**6) for left in (10_000, 4_000, 2_000, 800, 400, 8, 0)]
    assert sizes == [1000, 500, 250, 100, 50, 50, 50]
    assert sizes[-1] * 0.001 == SMALLEST_S


def test_two_units_are_left_for_each_thread() -> None:
    for left in range(1, 3_000, 7):
        size = unit_size(0.01, left, 8, 10**6)
        assert size <= max(5, -(-left // 16)), left


@given(st.none() | means, st.none() | means)
def test_what_is_worked_on_where_it_was_found_is_short(
    one: float | None, other: float | None
) -> None:
    for mean_s in (one, other):
        size = inline_items(mean_s)
        assert size >= 0
        assert size * (mean_s or 0.0) <= INLINE_S * 1.000001
    if one is not None and other is not None:
        assert inline_items(max(one, other)) <= inline_items(min(one, other))


def test_nothing_is_worked_on_in_passing_where_nothing_is_known_or_items_are_long() -> None:
    assert (inline_items(None), inline_items(INLINE_S * 1.01)) == (0, 0)
    assert inline_items(INLINE_S) == 1


# -- durations -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 1_000), st.floats(1e-6, 100)), min_size=1))
def test_the_mean_lies_between_what_was_measured(measured: list[tuple[int, float]]) -> None:
    durations = Durations()
    for count, seconds in measured:
        durations.add(count, seconds)
    each = [seconds / count for count, seconds in measured]
    assert durations.mean_s is not None
    assert min(each) * 0.999999 <= durations.mean_s <= max(each) * 1.000001


def test_the_first_measurements_count_equally() -> None:
    durations = Durations()
    for seconds in range(1, 11):
        durations.add(1, seconds)
    assert durations.mean_s == 5.5


@pytest.mark.parametrize(("count", "seconds"), [(0, 1.0), (-1, 1.0), (5, 0.0), (5, -1.0)])
def test_what_is_no_measurement_changes_nothing(count: int, seconds: float) -> None:
    durations = Durations()
    durations.add(count, seconds)
    assert durations.mean_s is None
    durations.add(2, 1.0)
    durations.add(count, seconds)
    assert durations.mean_s == 0.5


@pytest.mark.parametrize("count", [1, 10, 1_000])
@pytest.mark.parametrize(("before", "after"), [(0.001, 1.0), (1.0, 0.001)])
def test_durations_that_drift_are_followed(count: int, before: float, after: float) -> None:
    durations = Durations()
    for _ in range(1_000):
        durations.add(count, count * before)
    for _ in range(max(3, 16 * int(MEMORY) // count)):
        durations.add(count, count * after)
    assert durations.mean_s == pytest.approx(after, rel=0.25)


def test_durations_take_the_same_room_however_many_there_were() -> None:
    durations = Durations()
    for _ in range(100_000):
        durations.add(3, 0.1)
    assert not hasattr(durations, "__dict__")
    # The past never weighs more than a few measurements: it cannot grow without bound either.
    assert durations._count <= 2 * MEMORY + 3
    assert sys.getsizeof(durations) < 100


# -- in time -------------------------------------------------------------------------------------


def alike(sources: int, items: int, item_s: float) -> list[Source]:
    return [Source(2 * item_s, (item_s,) * items) for _ in range(sources)]


def factor(ran: Ran, sources: list[Source], threads: int) -> float:
    return ran.makespan_s / least_s(sources, threads)


@pytest.mark.parametrize("threads", [1, 6, 16])
@pytest.mark.parametrize(("sources", "items"), [(6, 2_000), (2_000, 6), (300, 40)])
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_trivial_items_make_few_units(sources: int, items: int, threads: int, known: bool) -> None:
    work = alike(sources, items, 1e-5)
    ran = work_on(work, threads, known=known)
    # A sixth of a second of work at the most: what counts is that 12,000 items are no 12,000
    # units. Sources that were expanded before a duration was known cost a unit each all the same.
    assert ran.units <= sources * items / 25
    assert ran.makespan_s <= least_s(work, threads) + 0.2
    alone = work_on(work, threads, known=known, batch=1)
    assert ran.makespan_s < alone.makespan_s / 10


@pytest.mark.parametrize("threads", [1, 6])
@pytest.mark.parametrize(("sources", "items"), [(6, 2_000), (2_000, 6), (300, 40)])
@pytest.mark.parametrize(("known", "most"), [(True, 1.05), (False, 1.2)])
def test_items_of_a_millisecond_cost_little_more_than_themselves(
    sources: int, items: int, threads: int, known: bool, most: float
) -> None:
    # Where nobody knows how many sources there are the last groups are not made smaller.
    work = alike(sources, items, 1e-3)
    ran = work_on(work, threads, known=known)
    assert ran.units <= sources * items / 80
    assert factor(ran, work, threads) <= most
    assert ran.largest_s <= 2 * TARGET_S * 1.2  # that of brief items


@pytest.mark.parametrize("threads", [1, 6])
@pytest.mark.parametrize(("sources", "items"), [(6, 200), (200, 6), (30, 6)])
def test_items_of_a_tenth_of_a_second_cost_what_they_are(
    sources: int, items: int, threads: int
) -> None:
    work = alike(sources, items, 0.1)
    assert factor(work_on(work, threads), work, threads) <= 1.05
    # Nobody waits at the end for a large unit that a number given beforehand would not have made.
    alone = work_on(work, threads, batch=1)
    assert work_on(work, threads).makespan_s <= alone.makespan_s * 1.02


def skewed(seed: int) -> list[Source]:
    """24 sources: parses of 0.05 to 3 s, heavy-tailed, and 0 to 60 items of 5 to 250 ms."""
    random = Random(seed)
    return [
        Source(
            min(3.0, 0.05 * random.paretovariate(0.8)),
            tuple(random.uniform(0.005, 0.25) for _ in range(random.randint(0, 60))),
        )
        for _ in range(24)
    ]


@pytest.mark.parametrize("nested", [False, True], ids=["flow", "nested"])
@pytest.mark.parametrize("batch", [None, 1])
def test_skewed_work_is_spread_over_the_threads(nested: bool, batch: int | None) -> None:
    # Required is 1.10 on real workers. A long parse that stands behind items until there are none
    # left costs 1.2; `as_completed` and `async` are the same here.
    for seed in range(200):
        work = skewed(seed)
        ran = work_on(work, 6, nested=nested, batch=batch)
        assert factor(ran, work, 6) <= 1.05, f"seed {seed}"


def recorded() -> list[Source]:
    """What 150 modules of Python's library cost `flows/code_audit.py`: parses, and functions.

    In the file each has the microseconds of its parse and of each of its items: 5,952 items of
    0.7 ms in the mean, parses of 10 ms.
    """
    text = (Path(__file__).parent / "recorded_durations.json").read_text()
    return [
        Source(parse_us / 1e6, tuple(item_us / 1e6 for item_us in items))
        for parse_us, items in json.loads(text)
    ]


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("nested", [False, True], ids=["flow", "nested"])
@pytest.mark.parametrize("threads", [1, 2, 6, 16])
def test_work_as_it_was_recorded(nested: bool, threads: int, known: bool) -> None:
    # The first modules are short, and a few take a hundred times as long: whoever takes the mean
    # of some for all gives everything to one thread, which costs twice to twelve times the least.
    work = recorded()
    ran = work_on(work, threads, nested=nested, known=known)
    assert ran.makespan_s <= 1.15 * least_s(work, threads) + 0.4
    assert ran.makespan_s < work_on(work, threads, nested=nested, batch=1).makespan_s / 1.5


@pytest.mark.parametrize("nested", [False, True], ids=["flow", "nested"])
@pytest.mark.parametrize(("threads", "most"), [(1, 1.02), (2, 1.06), (3, 1.05), (4, 1.03)])
def test_skewed_work_is_spread_over_few_threads(nested: bool, threads: int, most: float) -> None:
    for seed in range(60):
        work = skewed(seed)
        ran = work_on(work, threads, nested=nested)
        assert factor(ran, work, threads) <= most, f"seed {seed}"


def test_a_long_parse_that_is_listed_last_is_hidden_behind_items() -> None:
    work = [*alike(60, 30, 0.1), Source(3.0, (0.1,) * 10)]
    assert factor(work_on(work, 6), work, 6) <= 1.02
    assert factor(work_on(work, 6, nested=True), work, 6) <= 1.03


def test_lists_that_wait_are_few_however_many_sources_there_are() -> None:
    # Found, and not begun: some lists for each thread, not the 10,000 items of `buffered`.
    for sources in (50, 400):
        for batch in (None, 1):
            ran = work_on(alike(sources, 50, 0.02), 6, batch=batch)
            assert ran.waiting <= 50 * 6 * (AHEAD + 1) or batch is None, (sources, batch)


def test_batches_cost_skewed_work_little_parallelism() -> None:
    # Large units are waited for by the expansions that stand behind them.
    gains: list[float] = []
    for seed in range(60):
        work = skewed(seed)
        by_durations, alone = work_on(work, 6), work_on(work, 6, batch=1)
        gains.append(by_durations.makespan_s / alone.makespan_s)
        assert gains[-1] <= 1.1, f"seed {seed}"
        assert by_durations.units < alone.units
    assert median(gains) <= 1.0


def test_heavy_tailed_items_are_not_waited_for_behind_each_other() -> None:
    for seed in range(20):
        random = Random(seed)
        work = [
            Source(0.01, tuple(min(2.0, 0.002 * random.paretovariate(1.1)) for _ in range(300)))
            for _ in range(20)
        ]
        ran = work_on(work, 6)
        assert factor(ran, work, 6) <= 1.35, f"seed {seed}"
        assert ran.units <= 20 * 300 / 10, f"seed {seed}"


def test_the_overhead_is_all_that_one_thread_loses() -> None:
    work = skewed(1)
    ran = work_on(work, 1)
    assert ran.makespan_s == pytest.approx(least_s(work, 1) + ran.units * OVERHEAD_S)
