"""The rules at the top of `core/filling.py` and the failure policies, one test each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evolve_tasks.core.actions import (
    Action,
    Expand,
    Extra,
    Found,
    Further,
    Process,
    Pull,
    Release,
    SourceDone,
    Turn,
)
from evolve_tasks.core.budget import (
    Bounded,
    FailFast,
    FailureBudget,
    Finish,
    Ignore,
    Standing,
)
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.core.fan_outs import UNKNOWN_FAN_OUT
from evolve_tasks.core.filling import AHEAD, GROWTH, LARGEST_GROUP
from evolve_tasks.core.open_tree import LARGEST_UNIT
from evolve_tasks.core.window import Window
from evolve_tasks.errors import IllegalEvent


class Core(Evolution):
    """Told of one source at a time, as most rules are easiest seen."""

    def comes(self) -> list[Action]:
        return self.sources_arrived(1)

    def ends(self) -> list[Action]:
        return self.sources_arrived(0)

    def gives(self, unit: int, size: int) -> list[Action]:
        return self.expanded(unit, [Found(size)])

    def fails(self, unit: int) -> list[Action]:
        return self.expanded(unit, [Found(lost=True)])


def evolution(
    stages: int = 2,
    in_flight: int | None = 4,
    buffered: int = 1_000,
    batch: int | None = 1,
    budget: FailureBudget | None = None,
    *,
    units: int | None = None,
    threads: int = 1,
    sources_known: int | None = None,
) -> Core:
    return Core(
        stages=stages,
        window=Window(in_flight, units, threads),
        buffered=buffered,
        batch=batch,
        budget=budget or Finish(),
        sources_known=sources_known,
    )


def expand(unit: int, source: int) -> Expand:
    """The expansion of a source."""
    return Expand(unit, 0, source, -1, 0, source, source + 1, 0)


def inner(unit: int, stage: int, source: int, parent: int, position: int) -> Expand:
    """The expansion of an item of an inner stage."""
    return Expand(unit, stage, source, parent, 0, position, position + 1, 0)


def process(unit: int, stage: int, source: int, parent: int, start: int, stop: int) -> Process:
    """Items of the only list of a unit."""
    return Process(unit, stage, source, parent, 0, start, stop)


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def said(actions: list[Action]) -> list[str]:
    """Actions to compare: `Release(3) == SourceDone(3)`, as both are tuples of one number."""
    return [repr(action) for action in actions]


def with_items(core: Core, *sizes: int) -> list[Action]:
    """Expand a source for each size, end the sources, and give the last answer."""
    core.begin()
    for _ in sizes:
        core.comes()
    core.ends()
    answer: list[Action] = []
    for unit, size in enumerate(sizes):
        answer = core.gives(unit, size)
    return answer


# -- rule 1: nothing starts once the run is stopped ----------------------------------------------


def test_after_a_stop_what_waits_is_not_run_and_what_runs_is_answered() -> None:
    core = evolution(in_flight=2)
    assert with_items(core, 5) == [process(1, 1, 0, 0, 0, 1), process(2, 1, 0, 0, 1, 2)]
    assert core.stop("enough") == []
    assert core.stopped == "enough"
    assert (core.waiting, core.flying, core.finished) == (0, 2, False)
    assert core.processed(1) == []
    # The last one may say that it had not begun.
    assert said(core.processed(2, not_run=1)) == said([Release(0), SourceDone(0)])
    assert core.finished
    tally = core.tallies[1]
    assert (tally.discovered, tally.done, tally.failed, tally.not_run) == (5, 1, 0, 4)


def test_a_source_that_comes_after_the_stop_is_not_run() -> None:
    core = evolution()
    assert core.begin() == [Pull(1)]
    core.stop("enough")
    assert not core.finished, "a source was asked for and may still come"
    assert said(core.comes()) == said([SourceDone(0)])
    assert core.finished
    assert (core.tallies[0].discovered, core.tallies[0].not_run) == (1, 1)


def test_items_that_are_found_after_the_stop_are_not_run() -> None:
    core = evolution()
    core.begin()
    core.comes()
    core.stop("enough")
    assert set(said(core.gives(0, 3))) == set(said([SourceDone(0), Release(0)]))
    core.ends()
    assert core.finished
    assert (core.tallies[1].discovered, core.tallies[1].not_run) == (3, 3)


def test_the_second_stop_changes_nothing() -> None:
    core = evolution()
    core.begin()
    core.stop("the first reason")
    assert core.stop("the second reason") == []
    assert core.stopped == "the first reason"


def test_a_run_that_is_stopped_before_it_begins_is_over() -> None:
    core = evolution()
    core.stop("not at all")
    assert core.begin() == []
    assert core.finished


def test_an_expansion_that_had_not_begun_when_the_run_was_stopped_is_not_run() -> None:
    core = evolution()
    core.begin()
    core.comes()
    core.ends()
    core.stop("enough")
    assert said(core.expanded(0, [Found(skipped=True)])) == said([SourceDone(0), Release(0)])
    assert core.finished
    assert core.tallies[0].not_run == 1


def test_a_stop_closes_the_lists_of_all_levels() -> None:
    core = evolution(stages=3, in_flight=1)
    core.begin()
    core.comes()
    core.gives(0, 4)  # four inner items; the first of them is expanded
    assert core.gives(1, 2) == [process(2, 2, 0, 1, 0, 1)]
    assert core.stop("enough") == []
    assert said(core.processed(2)) == said([Release(1), Release(0), SourceDone(0)])
    assert core.finished
    assert core.tallies[1].not_run == 3
    assert core.tallies[2].not_run == 1


# -- rule 2: the window --------------------------------------------------------------------------


def test_what_is_in_flight_fills_the_window_and_no_more() -> None:
    core = evolution(in_flight=5, batch=2)
    answer = with_items(core, 9)
    # Two whole batches; the third would be the sixth item in flight.
    assert answer == [process(1, 1, 0, 0, 0, 2), process(2, 1, 0, 0, 2, 4)]
    assert (core.flying, core.waiting) == (4, 5)


def test_an_expansion_and_a_pull_take_one_place_each() -> None:
    core = evolution(in_flight=2)
    core.begin()
    assert core.flying == 1
    assert core.comes() == [expand(0, 0), Pull(1)]
    assert core.flying == 2
    assert core.ends() == []
    assert core.flying == 1, "the place of a pull that brought nothing is free again"


def probing(batch: int | None = None, **options: Any) -> Core:
    """A core that has asked for sources until it wants no more for now."""
    core = evolution(in_flight=None, units=16, threads=2, batch=batch, buffered=10**6, **options)
    actions = core.begin()
    while actions and isinstance(actions[-1], Pull):
        actions = core.sources_arrived(1)
    return core


def test_few_units_find_out_how_long_items_take() -> None:
    core = probing()
    assert core.flying == AHEAD * 2
    assert core.expanded(0, [Found(90)], seconds=1e-3) == [process(4, 1, 0, 0, 0, 1)]
    second = core.expanded(1, [Found(90)], seconds=1e-3)
    assert second == [process(5, 1, 0, 0, 1, 2)]
    assert core.expanded(2, [Found(90)], seconds=1e-3) == [process(6, 1, 0, 0, 2, 3)]
    assert core.probing
    assert core.processed(4, seconds=1e-3), "now it is known"
    assert not core.probing


def test_nothing_is_held_back_where_it_takes_long() -> None:
    core = probing()
    assert core.waited() == [Pull(1)]
    for _ in range(11):
        core.sources_arrived(1)
    assert core.flying == 16


def test_nothing_is_held_back_where_the_sizes_are_given() -> None:
    assert probing(batch=1).flying == 16


def test_a_wider_window_is_used_at_once() -> None:
    core = evolution(in_flight=2)
    with_items(core, 9)
    assert len(core.resize(Window(5))) == 3
    assert core.flying == 5


def test_a_narrower_window_lets_run_what_runs() -> None:
    core = evolution(in_flight=4)
    with_items(core, 9)
    assert core.resize(Window(2)) == []
    assert core.flying == 4
    assert core.processed(1) == []
    assert core.processed(2) == []
    assert len(core.processed(3)) == 1, "only now is one below the new bound"


def test_without_a_number_of_items_units_are_bounded() -> None:
    core = evolution(in_flight=None, units=3, batch=4)
    assert kinds(with_items(core, 50)) == ["Process", "Process", "Process"]
    assert core.flying == 12
    core = evolution(in_flight=None, units=1, batch=4)
    assert core.adopt([Found(50)]) == [process(1, 1, 0, 0, 0, 4)]
    assert core.resize(Window(units=2)) == [process(2, 1, 0, 0, 4, 8)]


def test_a_pull_is_a_unit() -> None:
    core = evolution(in_flight=None, units=2)
    assert core.begin() == [Pull(1)]
    assert core.comes() == [expand(0, 0), Pull(1)]
    assert core.comes() == [expand(1, 1)]


@pytest.mark.parametrize("batch", [LARGEST_UNIT - 1, LARGEST_UNIT + 1, 10 * LARGEST_UNIT])
def test_a_batch_of_any_size_starts_where_units_are_bounded(batch: int) -> None:
    core = evolution(in_flight=None, units=1, batch=batch)
    assert core.adopt([Found(3 * LARGEST_UNIT)]) == [
        process(1, 1, 0, 0, 0, min(batch, 3 * LARGEST_UNIT))
    ]


# -- rule 3: deeper before shallower, first come, first served -----------------------------------


def test_items_come_before_new_sources() -> None:
    core = evolution(in_flight=1)
    assert core.begin() == [Pull(1)]
    assert core.comes() == [expand(0, 0)]
    assert core.gives(0, 2) == [process(1, 1, 0, 0, 0, 1)]
    assert core.processed(1) == [process(2, 1, 0, 0, 1, 2)]
    assert said(core.processed(2)) == said([Release(0), SourceDone(0), Pull(1)])


def test_inner_expansions_come_before_new_sources_and_after_items() -> None:
    core = evolution(stages=3, in_flight=1)
    core.begin()
    core.comes()
    assert core.gives(0, 2) == [inner(1, 1, 0, 0, 0)]
    assert core.gives(1, 1) == [process(2, 2, 0, 1, 0, 1)]
    assert said(core.processed(2)) == said([Release(1), inner(3, 1, 0, 0, 1)])
    assert said(core.gives(3, 0)) == said([Release(0), SourceDone(0), Release(3), Pull(1)])


def test_the_items_of_the_first_list_come_first() -> None:
    core = evolution(in_flight=3)
    core.begin()
    core.comes()
    core.comes()
    core.ends()
    # Source 1 tells its items first, so they are worked on first.
    assert core.gives(1, 3) == [process(2, 1, 1, 1, 0, 1), process(3, 1, 1, 1, 1, 2)]
    assert core.gives(0, 2) == [process(4, 1, 1, 1, 2, 3)]
    assert core.processed(2) == [process(5, 1, 0, 0, 0, 1)]


def test_the_inner_items_of_the_first_list_come_first() -> None:
    core = evolution(stages=3, in_flight=2)
    core.begin()
    core.comes()
    core.comes()
    assert core.gives(1, 2) == [inner(2, 1, 1, 1, 0)]
    assert core.gives(0, 2) == [inner(3, 1, 1, 1, 1)], "source 1 told its items first"
    assert core.fails(2) == [Release(2), inner(4, 1, 0, 0, 0)]


def test_the_deepest_inner_items_come_first() -> None:
    core = evolution(stages=4, in_flight=1)
    core.begin()
    core.comes()
    assert core.gives(0, 2) == [inner(1, 1, 0, 0, 0)]
    assert core.gives(1, 2) == [inner(2, 2, 0, 1, 0)]
    assert core.gives(2, 0)[-1] == inner(3, 2, 0, 1, 1), "and not the second of stage 1"


# -- rule 4: expansions beside items ------------------------------------------------------------


def saturated(threads: int, lists: int, *, in_flight: int | None = None, batch: int = 1) -> Core:
    """A core whose window is full of expansions, of which some have given 50 items each."""
    units = None if in_flight else 4 * threads
    core = evolution(in_flight=in_flight, units=units, threads=threads, batch=batch, buffered=10**6)
    core.begin()
    while core.pulling:
        core.comes()
    for unit in range(lists):
        core.gives(unit, 50)
    return core


def expansions(core: Core) -> int:
    """Expansions in flight, with the one that is being asked for."""
    return len([unit for unit in core._units.values() if isinstance(unit, Expand)]) + core.pulling


@pytest.mark.parametrize("threads", [3, 4, 6, 64])
def test_where_no_item_waits_two_expansions_for_each_thread_are_in_flight(threads: int) -> None:
    core = saturated(threads, 0)
    assert expansions(core) == AHEAD * threads
    assert all(core.turn(unit) is Turn.AMONG for unit in range(AHEAD * threads)), (
        "none is behind the items"
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_few_threads_get_all_that_the_window_holds_and_little_of_it_before_items(
    threads: int,
) -> None:
    core = saturated(threads, 0)
    assert expansions(core) == 4 * threads
    in_turn = [unit for unit in range(4 * threads) if core.turn(unit) is Turn.AMONG]
    assert in_turn == list(range(AHEAD * threads))


def test_every_other_thread_may_expand_beside_items() -> None:
    core = saturated(6, 9)
    assert expansions(core) == 3
    # Each that ends is followed by another one, before an item is.
    assert kinds(core.gives(9, 0))[-1] == "Pull"
    (expansion,) = core.comes()
    assert isinstance(expansion, Expand)
    assert core.turn(expansion.unit) is not Turn.BEHIND
    assert expansions(core) == 3


@pytest.mark.parametrize(
    ("parse_s", "turn"), [(0.0001, Turn.BEFORE), (0.1, Turn.BEFORE), (0.11, Turn.AMONG)]
)
def test_lists_are_there_before_the_last_item_is(parse_s: float, turn: Turn) -> None:
    """An expansion that takes no longer than a batch of items goes before those that are queued."""
    core = evolution(in_flight=None, units=3, threads=1)  # a batch is an item
    core.begin()
    core.comes()
    assert core.turn(0) is Turn.AMONG, "nobody knows how long it takes"
    core.comes()
    core.expanded(0, [Found(2)], seconds=parse_s)
    core.processed(2, seconds=0.1)
    (expansion, *_) = core.comes()
    assert isinstance(expansion, Expand)
    assert core.turn(expansion.unit) is turn


def test_an_item_is_followed_by_an_item_as_long_as_enough_is_expanded() -> None:
    core = saturated(6, 9)
    assert kinds(core.processed(12)) == ["Process"]


def test_one_thread_works_strictly_depth_first() -> None:
    core = saturated(1, 4)
    assert expansions(core) == 0
    assert core.waiting > 0
    while core.waiting:
        unit = next(iter(core._units))
        assert "Pull" not in kinds(core.processed(unit)) or not core.waiting


def test_two_threads_parse_one_source_beside_the_items_of_others() -> None:
    core = evolution(in_flight=None, units=8, threads=2, buffered=10**6)
    core.begin()
    core.comes()
    core.comes()
    core.ends()
    assert kinds(core.gives(0, 50)) == ["Process"] * 7


def test_nothing_is_expanded_while_two_lists_for_each_thread_wait() -> None:
    core = saturated(6, 11)  # which has made room for one more: it is being asked for
    core.comes()
    for unit, action in list(core._units.items()):
        if isinstance(action, Expand):
            core.gives(unit, 50)
    assert (expansions(core), len(core._waiting[1])) == (0, AHEAD * 6 + 1)
    while not core.pulling:
        core.processed(next(iter(core._units)))
    assert len(core._waiting[1]) == AHEAD * 6 - 1


@pytest.mark.parametrize(("in_flight", "batch", "most"), [(6, 1, 3), (3, 1, 1), (2, 1, 1)])
def test_a_narrow_window_has_few_places_beside_items(in_flight: int, batch: int, most: int) -> None:
    core = saturated(16, 0, in_flight=in_flight, batch=batch)
    for unit in range(in_flight):
        core.gives(unit, 1 if unit else 50)
    assert core.waiting > 0
    assert expansions(core) <= most
    assert core.flying == in_flight


@pytest.mark.parametrize(("in_flight", "batch"), [(1, 1), (4, 4), (4, 8)])
def test_a_window_that_a_batch_fills_has_no_place_for_an_expansion_beside_items(
    in_flight: int, batch: int
) -> None:
    core = evolution(in_flight=in_flight, batch=batch, threads=4)
    core.begin()
    while core.pulling:
        core.comes()
    for unit in range(in_flight):
        core.gives(unit, 3 * in_flight)
    while core.waiting:
        assert expansions(core) == 0
        core.processed(next(iter(core._units)))


@pytest.mark.parametrize(("in_flight", "batch"), [(2, 2), (5, 5), (4, 8), (5, 4), (1, 3)])
@pytest.mark.parametrize("threads", [1, 2, 6])
def test_items_start_soon_however_large_a_batch_is(
    in_flight: int, batch: int, threads: int
) -> None:
    # Expansions beside items must not take the place that a batch as large as the window waits for.
    core = evolution(in_flight=in_flight, batch=batch, buffered=10_000, threads=threads)
    todo = core.begin()
    in_order: list[Expand] = []
    while not any(isinstance(action, Process) for action in todo):
        in_order += [action for action in todo if isinstance(action, Expand)]
        assert core.sources <= 2 * in_flight, (
            f"{core.sources} sources were expanded, {core.waiting} items wait, and none was begun"
        )
        todo = core.comes() if core.pulling else core.gives(in_order.pop(0).unit, 10)
    assert core.flying <= in_flight


# -- rule 5: the buffer --------------------------------------------------------------------------


def test_before_anything_is_known_a_hundred_items_are_expected_of_an_expansion() -> None:
    core = evolution(in_flight=20, buffered=3 * UNKNOWN_FAN_OUT)
    core.begin()
    assert kinds(core.comes()) == ["Expand", "Pull"]
    assert kinds(core.comes()) == ["Expand", "Pull"]
    assert kinds(core.comes()) == ["Expand"], "a fourth could overfill the buffer"


def test_expected_is_the_mean_of_what_was_seen() -> None:
    core = evolution(in_flight=20, buffered=30)
    core.begin()
    assert kinds(core.comes()) == ["Expand"], "one at a time below a bound of 200"
    core.gives(0, 4)  # all four in flight; the pull is the one expansion that is kept
    assert core.waiting == 0
    # 4 items expected: 7 expansions fit into 30.
    answers = [kinds(core.comes()) for _ in range(7)]
    assert answers == [["Expand", "Pull"]] * 6 + [["Expand"]]


def test_the_mean_is_rounded_up() -> None:
    core = evolution(in_flight=20, buffered=6)
    core.begin()
    core.comes()
    core.gives(0, 1)
    (expansion, _) = core.comes()
    assert isinstance(expansion, Expand)
    core.gives(expansion.unit, 2)
    # 1.5 are 2: three expansions fit into 6, and six would if 1 were expected.
    answers = [kinds(core.comes()) for _ in range(3)]
    assert answers == [["Expand", "Pull"], ["Expand", "Pull"], ["Expand"]]


def test_a_full_buffer_holds_back_expansions_until_it_is_below_the_bound_again() -> None:
    core = evolution(in_flight=2, buffered=3, threads=2)
    core.begin()
    core.comes()
    assert kinds(core.gives(0, 5)) == ["Process", "Process"]
    assert core.waiting == 3
    assert kinds(core.processed(1)) == ["Pull"], "alone it may start with 3 of 3 waiting"
    core.comes()
    assert kinds(core.gives(3, 5)) == ["Process"]
    assert core.waiting == 7
    assert kinds(core.processed(2)) == ["Process"], "7, then 6 wait: nothing is expanded"


def test_a_long_inner_list_does_not_hold_itself_up() -> None:
    core = evolution(stages=3, in_flight=9, buffered=2, threads=4)
    core.begin()
    core.comes()
    # They can only become fewer by being expanded: waiting for room would be for ever.
    assert core.gives(0, 5) == [inner(1, 1, 0, 0, 0)], "nobody knows what it gives"
    # As long as more than 2 of them wait the bound is 2 + 5, for they give one each at the most.
    assert core.gives(1, 0)[1:] == [inner(2, 1, 0, 0, 1), inner(3, 1, 0, 0, 2)]
    assert core.gives(2, 0) == [Release(2)], "2 wait, one is under way: no more than the bound"
    assert core.gives(3, 0)[1:] == [inner(4, 1, 0, 0, 3)]


def test_sources_without_items_count_as_one_each() -> None:
    core = evolution(in_flight=20, buffered=3)
    core.begin()
    core.comes()
    core.gives(0, 0)  # expected is now 0, of which any number would fit
    answers = [kinds(core.comes()) for _ in range(3)]
    assert answers == [["Expand", "Pull"], ["Expand", "Pull"], ["Expand"]]


def test_no_more_is_bet_on_a_mean_than_what_it_is_of_makes_credible() -> None:
    core = evolution(in_flight=2_000, buffered=1_000, threads=500)

    def begun() -> int:
        """Sources that are taken as long as the core asks for some."""
        count = 0
        while core.pulling:
            core.comes()
            count += 1
        return count

    core.begin()
    assert begun() == 1_000 // UNKNOWN_FAN_OUT
    core.gives(0, 0)  # by the mean a thousand would fit
    in_flight = 9 + begun()
    assert in_flight == AHEAD * GROWTH
    core.gives(1, 0)
    assert in_flight - 1 + begun() == 2 * AHEAD * GROWTH


@given(
    fan_out=st.integers(0, 100),
    buffered=st.integers(1, 500),
    in_flight=st.integers(1, 30),
    batch=st.integers(1, 8),
)
def test_one_fan_out_stands_above_the_bound_where_all_are_alike(
    fan_out: int, buffered: int, in_flight: int, batch: int
) -> None:
    core = evolution(in_flight=in_flight, buffered=buffered, batch=batch)
    todo = core.begin()
    units: list[Expand | Process] = []
    for _ in range(10_000):  # 25 sources of 100 items need 2,576 steps
        if core.finished:
            return
        units += [action for action in todo if isinstance(action, Expand | Process)]
        if core.pulling:
            todo = core.comes() if core.sources < 25 else core.ends()
            continue
        # Items end late: nothing makes room that need not be there.
        unit = min(units, key=lambda unit: (isinstance(unit, Process), unit.unit))
        units.remove(unit)
        if isinstance(unit, Expand):
            todo = core.gives(unit.unit, fan_out)
        else:
            todo = core.processed(unit.unit)
        assert core.waiting <= buffered + fan_out
    pytest.fail("the run does not come to an end")


# -- rule 6: sources are taken when there is room ------------------------------------------------


def test_a_source_is_asked_for_only_when_it_can_be_expanded_at_once() -> None:
    core = evolution(in_flight=2)
    assert core.begin() == [Pull(1)]
    assert core.comes() == [expand(0, 0), Pull(1)]
    assert core.comes() == [expand(1, 1)]
    assert said(core.fails(0)) == said([SourceDone(0), Release(0), Pull(1)])


def test_one_source_is_asked_for_at_a_time() -> None:
    core = evolution(in_flight=9)
    assert core.begin() == [Pull(1)]
    assert core.resize(Window(20)) == []


def test_no_source_at_all() -> None:
    core = evolution()
    core.begin()
    assert not core.finished
    assert core.ends() == []
    assert core.finished
    assert (core.sources, core.rejected) == (0, False)


# -- batches -------------------------------------------------------------------------------------


def test_batches_are_whole_but_the_last_of_a_list() -> None:
    answer = with_items(evolution(in_flight=10, batch=3), 7)
    assert [(action.start, action.stop) for action in answer] == [(0, 3), (3, 6), (6, 7)]  # type: ignore[union-attr]


def test_a_batch_waits_for_room_so_that_it_stays_whole() -> None:
    core = evolution(in_flight=4, batch=3)
    assert kinds(with_items(core, 6)) == ["Process"]
    assert core.flying == 3
    assert core.processed(1) == [process(2, 1, 0, 0, 3, 6)]


def test_a_batch_is_never_larger_than_the_window() -> None:
    answer = with_items(evolution(in_flight=2, batch=5), 5)
    assert answer == [process(1, 1, 0, 0, 0, 2)]


def test_a_batch_has_items_of_one_list_only() -> None:
    core = evolution(in_flight=20, batch=10)
    core.begin()
    core.comes()
    core.comes()
    core.ends()
    assert core.gives(0, 3) == [process(2, 1, 0, 0, 0, 3)]
    assert core.gives(1, 3) == [process(3, 1, 1, 1, 0, 3)]


# -- what has ended is said, once ----------------------------------------------------------------


def test_a_list_is_released_and_its_source_done_with_the_last_item() -> None:
    core = evolution()
    with_items(core, 3)
    assert core.processed(2) == []
    assert core.processed(1, failed=1) == []
    assert said(core.processed(3)) == said([Release(0), SourceDone(0)])
    assert core.finished


def test_a_source_without_items_is_done_at_once_and_its_empty_list_released() -> None:
    assert set(said(with_items(evolution(), 0))) == set(said([Release(0), SourceDone(0)]))


def test_a_failed_source_is_done_and_its_unit_released() -> None:
    core = evolution()
    core.begin()
    core.comes()
    core.ends()
    assert said(core.fails(0)) == said([SourceDone(0), Release(0)])
    assert core.finished
    assert (core.tallies[0].failed, core.standing.failed, core.standing.known) == (1, 1, 1)


def test_the_last_item_closes_its_list_and_those_above() -> None:
    core = evolution(stages=3, in_flight=1)
    core.begin()
    core.comes()
    core.gives(0, 1)
    core.gives(1, 1)
    answer = core.processed(2)
    assert said(answer[:3]) == said([Release(1), Release(0), SourceDone(0)])


def test_a_list_that_ends_counts_as_one_item_of_its_own_parent() -> None:
    core = evolution(stages=3, in_flight=2, threads=2)
    core.begin()
    core.comes()
    core.comes()
    core.gives(0, 2)
    core.gives(1, 1)
    # Of the two inner items of source 0 the first gives two items, the second none.
    assert core.gives(2, 2) == [process(4, 2, 0, 2, 0, 1)]
    assert said(core.gives(3, 0)) == said([Release(3), inner(5, 1, 1, 1, 0)])
    assert core.processed(4) == [process(6, 2, 0, 2, 1, 2)]
    assert said(core.processed(6)) == said([Release(2), Release(0), SourceDone(0), Pull(1)])
    assert said(core.gives(5, 0)) == said([Release(1), SourceDone(1), Release(5)])
    core.ends()
    assert core.finished


@given(
    st.integers(-1, 3),
    st.integers(-1, 3),
    st.tuples(*[st.integers(-1, 2)] * 4),
    st.integers(-1, 1),
    st.none() | st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=2),
    st.tuples(*[st.booleans()] * 3),
)
def test_what_was_found_adds_up_if_each_item_is_in_one_place(
    size: int,
    ended: int,
    of_those: tuple[int, int, int, int],
    start: int,
    left: list[tuple[int, int]] | None,
    flags: tuple[bool, bool, bool],
) -> None:
    failed, not_run, resumed, repeated = of_those
    lost, skipped, known = flags
    found = Found(
        size,
        ended,
        failed,
        not_run,
        lost,
        skipped,
        resumed,
        None if left is None else tuple(left),
        known=known,
        repeated=repeated,
        start=start,
    )
    ranges = [(start + ended, start + size)] if left is None else left
    positions = [place for one in ranges for place in range(*one)]
    expected = (
        size >= 0
        and start >= 0
        and all(first <= last for first, last in ranges)
        and positions == sorted(set(positions))
        and all(start <= place <= start + size for one in ranges for place in one)
        and all(one[1] <= other[0] for one, other in pairwise(ranges))
        and len(positions) + ended == size
        and min(of_those) >= 0
        and sum(of_those) <= ended
        and not (skipped and size)
        and not (lost and known)
    )
    assert found.adds_up() is expected


def test_a_source_that_ran_whole_is_counted_and_done() -> None:
    core = evolution()
    core.begin()
    core.comes()
    core.ends()
    whole = Found(10, 10, failed=2, not_run=3)
    assert said(core.expanded(0, [whole])) == said([SourceDone(0), Release(0)])
    tally = core.tallies[1]
    assert (tally.discovered, tally.done, tally.failed, tally.not_run) == (10, 5, 2, 3)
    assert core.finished


def test_a_source_that_ran_whole_says_what_to_expect_of_others() -> None:
    core = evolution(in_flight=20, buffered=20)
    core.begin()
    core.comes()
    core.expanded(0, [Found(10, 10)])
    assert kinds(core.comes()) == ["Expand", "Pull"]
    assert kinds(core.comes()) == ["Expand"], "20 items are expected of the two"


def test_items_that_were_not_worked_on_where_they_were_found_go_on_elsewhere() -> None:
    core = evolution()
    core.begin()
    core.comes()
    core.ends()
    assert core.expanded(0, [Found(3, 1)]) == [process(1, 1, 0, 0, 1, 2), process(2, 1, 0, 0, 2, 3)]
    assert core.tallies[1].done == 1
    assert core.processed(1) == []
    assert said(core.processed(2)) == said([Release(0), SourceDone(0)])


# -- groups of sources ---------------------------------------------------------------------------


def group(most: int = 8, *, item_s: float | None = None, **options: Any) -> Core:
    """A core whose parses are short: it has just asked for a group of sources."""
    options = {"in_flight": 2 * most, "batch": None, "buffered": 10**6} | options
    core = evolution(**options)
    core.begin()
    core.comes()
    if item_s is None:
        core.expanded(0, [Found(1)], seconds=1e-3)
        core.processed(1, seconds=1.0)
    else:
        core.expanded(0, [Found(1, 1)], seconds=1e-3, inline_s=item_s)
    # One source was asked for before anything was known.
    assert core.sources_arrived(0, ended=False) == [Pull(most)]
    return core


def test_short_parses_are_grouped_as_soon_as_their_duration_is_known() -> None:
    core = group(8)
    (expansion, _) = core.sources_arrived(8)
    assert expansion == Expand(2, 0, 1, -1, 0, 1, 9, 0)
    assert core.flying == 16, "the group, and as many that were asked for"


def test_fewer_sources_than_asked_for_are_the_last_ones() -> None:
    core = group(8)
    (expansion,) = core.sources_arrived(3)
    assert (expansion.start, expansion.stop) == (1, 4)  # type: ignore[union-attr]
    assert core.flying == 3


def test_fewer_sources_than_asked_for_may_be_followed_by_more() -> None:
    core = group(8)
    (expansion, pull) = core.sources_arrived(3, ended=False)
    assert (expansion.start, expansion.stop, pull) == (1, 4, Pull(8))  # type: ignore[union-attr]
    assert core.pulling


def test_sources_may_be_said_to_be_the_last_ones() -> None:
    core = evolution()
    core.begin()
    assert core.sources_arrived(1, ended=True) == [expand(0, 0)]
    core.gives(0, 0)
    assert core.finished


def test_each_source_of_a_group_ends_as_it_does() -> None:
    core = group(5)
    core.sources_arrived(4)
    found = [Found(2), Found(lost=True), Found(3, 3, failed=1), Found(1)]
    answer = core.expanded(2, found, seconds=4e-3, inline_s=3.0)
    done = [action for action in answer if isinstance(action, SourceDone)]
    assert said(done) == said([SourceDone(2), SourceDone(3)])
    assert not any(isinstance(action, Release) for action in answer), "two lists are open"
    begun = [action for action in answer if isinstance(action, Process)]
    assert begun == [
        Process(3, 1, 1, 2, 0, 0, 1),
        Process(4, 1, 1, 2, 0, 1, 2),
        Process(5, 1, 4, 2, 3, 0, 1),
    ]
    assert said(core.processed(5)) == said([SourceDone(4)])
    assert core.processed(3) == []
    assert said(core.processed(4)) == said([Release(2), SourceDone(1)])
    assert core.finished
    assert (core.tallies[0].done, core.tallies[0].failed) == (4, 1)
    assert (core.tallies[1].done, core.tallies[1].failed) == (6, 1)


def test_a_lost_group_is_the_failure_of_each_of_its_sources() -> None:
    core = group(5)
    core.sources_arrived(4)
    assert said(core.expansion_lost(2)) == said([*map(SourceDone, (1, 2, 3, 4)), Release(2)])
    assert (core.tallies[0].failed, core.standing.failed, core.finished) == (4, 4, True)


def test_what_is_lost_says_nothing_of_durations() -> None:
    core = evolution(in_flight=1_000, batch=None)
    core.begin()
    core.comes()
    assert core.expansion_lost(0)[-1:] != [Pull(2)]
    while core.sources < 5:
        (expansion,) = (a for a in core.sources_arrived(1) if isinstance(a, Expand))
        answer = core.expansion_lost(expansion.unit)
        assert all(a.most == 1 for a in answer if isinstance(a, Pull))


def test_sources_with_few_short_items_work_on_them_at_once() -> None:
    core = group(8, item_s=0.01)
    expansion = core.sources_arrived(8)[0]
    assert isinstance(expansion, Expand)
    assert expansion.inline == 10, "a tenth of a second"


def test_sources_come_singly_until_an_item_was_measured() -> None:
    core = evolution(in_flight=16, batch=None, buffered=10**6)
    core.begin()
    core.comes()
    core.expanded(0, [Found(1)], seconds=1e-3)
    assert core.comes()[-1] == Pull(1), "lists of a group would not be worked on at once"
    core.processed(1, seconds=1e-3)
    assert core.comes()[-1] == Pull(8)


def test_sources_without_items_are_grouped_though_no_item_is_ever_measured() -> None:
    core = evolution(in_flight=16, batch=None, buffered=10**6)
    core.begin()
    core.comes()
    core.expanded(0, [Found()], seconds=1e-3)
    assert core.comes()[-1] == Pull(8)


def test_with_a_batch_given_sources_come_singly_and_nothing_is_worked_on_in_passing() -> None:
    core = evolution(in_flight=20, batch=3, buffered=10**6)
    core.begin()
    core.comes()
    core.expanded(0, [Found(1, 1)], seconds=1e-6, inline_s=1e-6)
    assert core.comes() == [expand(1, 1), Pull(1)]


def test_a_group_is_no_more_than_the_buffer_is_expected_to_hold() -> None:
    core = evolution(in_flight=None, units=16, batch=None, buffered=30)
    core.begin()
    core.comes()
    answer = core.expanded(0, [Found(10, 10)], seconds=1e-6, inline_s=100.0)
    assert answer[-1] == Pull(3), "ten of each"


def test_lists_that_are_worked_on_where_they_are_found_do_not_wait() -> None:
    core = evolution(in_flight=None, units=16, batch=None, buffered=30)
    core.begin()
    core.comes()
    assert core.expanded(0, [Found(10, 10)], seconds=1e-6, inline_s=1e-5)[-1] == Pull(3)
    core.sources_arrived(3)
    size = GROWTH * 4  # of what has been expanded
    assert core.expanded(1, [Found(10, 10)] * 3, inline_s=3e-5)[-1] == Pull(size)
    core.sources_arrived(size)
    left = [Found(10)] * 4 + [Found(10, 10)] * (size - 4)
    answer = core.expanded(2, left, inline_s=1e-2)
    assert "Pull" not in kinds(answer), "those that were left all the same fill the buffer"


def test_groups_grow_with_what_has_been_expanded() -> None:
    # Of one short source nobody knows what a thousand others are.
    core = evolution(in_flight=None, units=1, threads=1, batch=None)
    core.begin()
    core.comes()
    known, sizes = 0, [1]
    for unit in range(4):
        size = sizes[-1]
        (pull,) = core.expanded(unit, [Found()] * size, seconds=1e-7 * size)[-1:]
        known += size
        assert pull == Pull(min(LARGEST_GROUP, GROWTH * known))
        sizes.append(min(LARGEST_GROUP, GROWTH * known))
        core.sources_arrived(sizes[-1])
    assert sizes[-1] == LARGEST_GROUP


class Brief:
    """Two threads, and sources of which each is worked on in less than a millisecond."""

    def __init__(self) -> None:
        self.core = evolution(in_flight=None, units=16, threads=2, batch=None, buffered=10**6)
        self.under_way: deque[tuple[int, int]] = deque()  # unit, sources
        self.take(self.core.begin())

    def take(self, actions: list[Action]) -> None:
        """Have all sources come that are asked for."""
        todo = deque(actions)
        while todo:
            match todo.popleft():
                case Pull(most):
                    todo.extend(self.core.sources_arrived(most))
                case Expand(unit=unit, start=start, stop=stop):
                    self.under_way.append((unit, stop - start))

    def end(self) -> None:
        """The unit that began first has worked on all of its sources."""
        unit, size = self.under_way.popleft()
        found = [Found(5, 5)] * size
        self.take(self.core.expanded(unit, found, seconds=1e-4 * size, inline_s=5e-4 * size))

    @property
    def sizes(self) -> list[int]:
        return [size for _, size in self.under_way]


def test_few_small_groups_are_in_flight_while_the_next_ones_may_be_larger() -> None:
    brief = Brief()
    assert brief.sizes == [1] * AHEAD * 2
    for _ in range(3):
        brief.end()
    assert brief.sizes == [1, GROWTH // 2, GROWTH, GROWTH * 3 // 2], "one for each that has ended"
    brief.take(brief.core.waited())
    assert len(brief.sizes) == 16, "nothing ends: brief they are not"


def test_groups_that_are_as_large_as_they_should_be_fill_the_window_of_few_threads() -> None:
    brief = Brief()
    most = 0
    while max(brief.sizes) < LARGEST_GROUP:
        most = max(most, len(brief.sizes))
        brief.end()
    assert most == AHEAD * 2
    for _ in range(6):  # with so many that none is too many to bet on their mean
        brief.end()
    assert len(brief.sizes) == 16


def test_what_the_known_sources_will_give_is_expected() -> None:
    core = evolution(sources_known=11)
    core.begin()
    core.comes()
    assert core.expected_items == 0, "nothing is known of fan-outs"
    core.gives(0, 5)
    assert core.expected_items == core.waiting + 10 * 5


# -- lists that somebody else has found ----------------------------------------------------------


def test_lists_that_are_adopted_are_worked_on_from_where_they_stand() -> None:
    core = evolution(in_flight=2, batch=2)
    assert core.adopt([Found(3, 1), Found(4, 4), Found(), Found(1)]) == [process(1, 1, 0, 0, 1, 3)]
    assert core.processed(1) == [SourceDone(0), Process(2, 1, 3, 0, 3, 0, 1)]
    assert said(core.processed(2)) == said([Release(0), SourceDone(3)])
    assert core.finished
    assert (core.tallies[1].discovered, core.tallies[1].done, core.sources) == (3, 3, 0)


def test_what_others_measured_makes_batches_at_once() -> None:
    window = Window(units=4, threads=2)
    core = Core(stages=2, window=window, buffered=1, batch=None, budget=Finish(), item_s=0.01)
    assert core.item_s == 0.01
    sizes = [action.stop - action.start for action in core.adopt([Found(100)])]  # type: ignore[union-attr]
    assert sizes == [25, 19, 14, 11], "a quarter of what is left"


@pytest.mark.parametrize("lists", [[], [Found()], [Found(5, 5)]])
def test_nothing_to_adopt_is_the_end(lists: list[Found]) -> None:
    core = evolution()
    assert core.adopt(lists) == []
    assert core.finished


# -- failure policies ----------------------------------------------------------------------------


def five_items(budget: FailureBudget) -> Core:
    """One item in flight, four waiting, nothing more to come."""
    core = evolution(in_flight=1, budget=budget)
    core.begin()
    core.comes()
    core.gives(0, 5)
    return core


def test_finish_runs_everything_else_and_rejects() -> None:
    core = five_items(Finish())
    assert kinds(core.processed(1, failed=1)) == ["Process"]
    assert core.stopped is None
    assert core.rejected


def test_fail_fast_starts_nothing_after_the_first_failure() -> None:
    core = five_items(FailFast())
    assert said(core.processed(1, failed=1)) == said([Release(0), SourceDone(0)])
    assert core.stopped == "the first failure (on_failure='fail_fast')"
    assert (core.finished, core.rejected, core.tallies[1].not_run) == (True, True, 4)


def test_fail_fast_stops_at_a_failed_source_too() -> None:
    core = evolution(budget=FailFast())
    core.begin()
    core.comes()
    assert said(core.fails(0)) == said([SourceDone(0), Release(0)])
    assert core.stopped is not None
    core.ends()
    assert core.finished
    assert core.rejected


def test_fail_fast_stops_at_a_source_that_ran_whole_with_a_failure() -> None:
    core = evolution(in_flight=1, budget=FailFast())
    core.begin()
    core.comes()
    assert said(core.expanded(0, [Found(5, 5, failed=1)])) == said([SourceDone(0), Release(0)])
    assert core.stopped is not None


def test_ignore_accepts_every_failure() -> None:
    core = five_items(Ignore())
    assert kinds(core.processed(1, failed=1)) == ["Process"]
    assert not core.rejected


def test_a_count_stops_with_the_first_failure_too_many() -> None:
    core = five_items(Bounded(count=1, ratio=None))
    assert kinds(core.processed(1, failed=1)) == ["Process"]
    assert not core.rejected
    assert said(core.processed(2, failed=1)) == said([Release(0), SourceDone(0)])
    assert core.stopped == "2 failures, of which 1 are tolerated"
    assert core.rejected


def test_a_share_is_not_judged_while_more_may_be_found() -> None:
    core = evolution(in_flight=2, budget=Bounded(count=None, ratio=0.5))
    core.begin()
    core.comes()
    assert said(core.fails(0)) == said([SourceDone(0), Release(0)])
    assert core.stopped is None, "1 of 1 failed, and a hundred may come"
    assert core.ends() == []
    assert core.stopped == "1 of 1 failed, tolerated is 50.0%"
    assert core.rejected


def test_a_share_is_judged_as_soon_as_nothing_more_can_be_found() -> None:
    core = evolution(in_flight=1, budget=Bounded(count=None, ratio=0.2))
    core.begin()
    core.comes()
    core.gives(0, 5)
    core.processed(1, failed=1)
    core.processed(2, failed=1)
    assert core.stopped is None, "2 of 5, and more may be found"
    for unit in (3, 4, 5):
        core.processed(unit)
    core.ends()
    assert core.stopped == "2 of 5 failed, tolerated is 20.0%"


def test_a_share_is_judged_before_the_items_of_the_last_expansion_start() -> None:
    core = evolution(in_flight=2, budget=Bounded(count=None, ratio=0.25))
    core.begin()
    core.comes()
    core.comes()
    core.fails(0)
    core.ends()
    assert core.stopped is None, "1 of 1, but source 1 may have a hundred items"
    core.gives(1, 2)
    assert core.stopped == "1 of 3 failed, tolerated is 25.0%"
    assert (core.finished, core.tallies[1].not_run) == (True, 2)


def test_a_share_waits_for_inner_expansions() -> None:
    core = evolution(stages=3, in_flight=1, budget=Bounded(count=None, ratio=0.5))
    core.begin()
    core.comes()
    core.gives(0, 3)
    core.fails(1)
    core.fails(2)
    assert core.stopped is None, "2 of 2, but the third may have a hundred items"
    core.gives(3, 2)
    assert core.stopped is None
    core.processed(4)
    core.processed(5)
    assert core.ends() == []
    assert (core.standing, core.rejected) == (Standing(failed=2, known=4, complete=True), False)


def test_either_bound_is_enough() -> None:
    budget = Bounded(count=3, ratio=0.5)
    assert budget.rejects(Standing(failed=4, known=100, complete=True))
    assert budget.rejects(Standing(failed=2, known=3, complete=True))
    assert not budget.rejects(Standing(failed=3, known=6, complete=True))


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_nothing_of_nothing_is_no_failure(ratio: float) -> None:
    standing = Standing(failed=0, known=0, complete=True)
    assert not Bounded(None, ratio).rejects(standing)
    assert Bounded(None, ratio).exceeded(standing) is None


def test_exactly_the_share_that_is_tolerated_is_tolerated() -> None:
    # 29 of 100 is 0.29, also where 0.29 * 100 is 28.999999999999996.
    wrong = [
        f"{failed} of {known} against ratio={percent / 100}"
        for percent in range(101)
        for known in range(1, 201)
        for failed in {known * percent // 100, -(-known * percent // 100)}
        if Bounded(None, percent / 100).rejects(Standing(failed, known, True))
        != (Fraction(failed, known) > Fraction(percent, 100))
    ]
    assert wrong == []


@given(
    count=st.none() | st.integers(0, 20),
    ratio=st.none() | st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0]),
    failed=st.integers(0, 40),
    more=st.integers(0, 40),
)
def test_what_stops_a_run_rejects_it(
    count: int | None, ratio: float | None, failed: int, more: int
) -> None:
    standing = Standing(failed, failed + more, complete=True)
    budget = Bounded(count, ratio)
    assert (budget.exceeded(standing) is not None) == budget.rejects(standing)


# -- illegal events ------------------------------------------------------------------------------


def under_way() -> Core:
    """Unit 0 is an answered expansion, 1 and 2 are processes, 3 is an expansion, no pull is due."""
    core = evolution(in_flight=3)
    core.begin()
    core.comes()
    core.comes()
    core.ends()
    core.gives(0, 5)
    return core


def wrong(*found: Found) -> Callable[[Core], object]:
    """Unit 1, an expansion of one item, answered with this."""
    return lambda core: core.expanded(1, found)


ILLEGAL: dict[str, tuple[Callable[[Core], object], str]] = {
    "expanded twice": (lambda core: core.gives(0, 5), "unit 0"),
    "failed after it was expanded": (lambda core: core.fails(0), "unit 0"),
    "lost after it was expanded": (lambda core: core.expansion_lost(0), "unit 0"),
    "never begun": (lambda core: core.gives(17, 5), "unit 17"),
    "a process never begun": (lambda core: core.processed(17), "unit 17"),
    "a process that is expanded": (lambda core: core.gives(2, 5), "unit 2"),
    "a process that is lost as an expansion": (lambda core: core.expansion_lost(2), "unit 2"),
    "an expansion that is processed": (lambda core: core.processed(1), "unit 1"),
    "an answer too short": (wrong(), "unit 1 of 1 items was answered with 0"),
    "an answer too long": (wrong(Found(), Found()), "unit 1 of 1 items was answered with 2"),
    "a negative fan-out": (wrong(Found(-1)), "unit 1"),
    "more ended than found": (wrong(Found(2, 3)), "unit 1"),
    "more failed than ended": (wrong(Found(2, 1, failed=2)), "unit 1"),
    "more failed and left than ended": (wrong(Found(2, 2, failed=2, not_run=1)), "unit 1"),
    "failed below nothing": (wrong(Found(2, 2, failed=-1)), "unit 1"),
    "failed below nothing beside others": (wrong(Found(2, 2, failed=-1, not_run=1)), "unit 1"),
    "left below nothing beside others": (wrong(Found(2, 2, failed=1, not_run=-1)), "unit 1"),
    "lost, and known": (wrong(Found(2, 2, resumed=2, lost=True, known=True)), "unit 1"),
    "items of what was skipped": (wrong(Found(2, skipped=True)), "unit 1"),
    "more failures than items": (lambda core: core.processed(2, failed=2), "unit 2"),
    "more left than items": (lambda core: core.processed(2, not_run=2), "unit 2"),
    "a negative number of failures": (lambda core: core.processed(2, failed=-1), "unit 2"),
    "a negative number left": (lambda core: core.processed(2, not_run=-1), "unit 2"),
    "a source nobody asked for": (lambda core: core.comes(), "none had been asked for"),
    "an end nobody asked for": (lambda core: core.ends(), "none had been asked for"),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_event_is_refused_and_named(name: str) -> None:
    event, named = ILLEGAL[name]
    with pytest.raises(IllegalEvent, match=named):
        event(under_way())


def test_an_illegal_event_changes_nothing() -> None:
    # Each unit in flight is still answered once: the refused answer was not that one.
    damaged = {}
    for name, (event, _) in ILLEGAL.items():
        core = under_way()
        before = (core.flying, core.waiting, repr(core.tallies), core.finished)
        with pytest.raises(IllegalEvent):
            event(core)
        after = (core.flying, core.waiting, repr(core.tallies), core.finished)
        if after != before:
            damaged[name] = f"in flight were {before[0]}, now {after[0]}"
    assert damaged == {}


@pytest.mark.parametrize("count", [-1, 2])
def test_more_sources_than_were_asked_for_are_refused(count: int) -> None:
    core = evolution()
    core.begin()
    with pytest.raises(IllegalEvent, match="asked for were 1"):
        core.sources_arrived(count)
    assert core.pulling
    assert (core.flying, core.sources) == (1, 0)


def test_a_source_that_is_awaited_keeps_its_place_and_is_told_of_later() -> None:
    core = Evolution(
        stages=2,
        window=Window(in_flight=4),
        buffered=10,
        batch=1,
        budget=Finish(),
        sources_known=None,
    )
    core.begin()
    assert core.sources_arrived(0, ended=False, awaited=True) == [], "it was asked for already"
    assert core.pulling
    assert core.flying == 1
    assert not core.finished
    (expand,) = [
        action for action in core.sources_arrived(1, ended=True) if isinstance(action, Expand)
    ]
    assert (expand.start, expand.stop) == (0, 1)
    assert not core.pulling


def test_what_was_asked_for_does_not_wait_for_a_source_that_is_long_in_coming() -> None:
    core = evolution(in_flight=1)
    core.begin()
    core.comes()
    core.gives(0, 1)
    assert [type(action) for action in core.processed(1)] == [Release, SourceDone, Pull]
    (extra,) = core.add_extra(0)
    assert isinstance(extra, Extra)
    # The source comes all the same, and takes the place when it is free.
    assert core.comes() == []
    assert core.flying == 1
    (expand,) = core.extra_ended(extra.unit)
    assert isinstance(expand, Expand)


@pytest.mark.parametrize("leads_on", [False, True])
def test_a_share_is_judged_at_the_end_where_the_last_stage_leads_on(leads_on: bool) -> None:
    core = Core(
        stages=2,
        window=Window(in_flight=4),
        buffered=10,
        batch=1,
        budget=Bounded(count=None, ratio=0.5),
        sources_known=1,
        leads_on=leads_on,
    )
    core.begin()
    core.sources_arrived(1, ended=True)
    items = [one.unit for one in core.gives(0, 3) if isinstance(one, Process)]
    core.processed(items[0], failed=1)
    core.processed(items[1], failed=1)
    assert (core.stopped is None) == leads_on
    # The third one finds more than enough.
    found = Further(1, Found(5), 0, 1)
    core.processed(items[2], further=[found])
    assert (core.stopped is None) == leads_on


def finds(*sizes: int, stage: int = 1) -> list[Further]:
    """One list of each size, found by the items of a batch."""
    return [Further(stage, Found(size)) for size in sizes]


def with_brief_items(units: int, *, in_flight: int | None = None) -> Core:
    """A run of which one item has ended, that took no time, and one more is in flight."""
    core = evolution(in_flight=in_flight, units=units, batch=None, sources_known=1)
    core.begin()
    core.sources_arrived(1, ended=True)
    core.expanded(0, [Found(2)])
    core.processed(1, seconds=1e-5)
    return core


def beside(actions: list[Action]) -> list[tuple[int, int, int]]:
    """Unit, number of items, and with which one it goes."""
    return [
        (one.unit, one.stop - one.start, one.beside)
        for one in actions
        if isinstance(one, Process | Expand)
    ]


def test_short_lists_that_were_found_take_one_place_together() -> None:
    core = with_brief_items(units=1)
    assert beside(core.processed(2, seconds=1e-5, further=finds(1, 2, 1))) == [
        (3, 1, -1),
        (4, 2, 3),
        (5, 1, 3),
    ]
    # Whichever ends first, the place is free when the last one has ended.
    assert beside(core.processed(3, seconds=1e-5, further=finds(1, 1))) == []
    assert beside(core.processed(5, seconds=1e-5)) == []
    assert beside(core.processed(4, seconds=1e-5)) == [(6, 1, -1), (7, 1, 6)]


def test_no_more_goes_together_than_a_unit_should_have() -> None:
    core = with_brief_items(units=1, in_flight=8)
    # What was found last goes first. Four items are half of the window, and there would be five.
    found = core.processed(2, seconds=1e-5, further=finds(1, 3, 1, 1))
    assert beside(found) == [(3, 1, -1), (4, 1, 3)]


def test_a_size_that_was_given_is_that_of_one_list() -> None:
    core = evolution(in_flight=None, units=2, batch=4)
    with_items(core, 1)
    found = core.processed(1, seconds=1e-5, further=finds(1, 1))
    assert beside(found) == [(2, 1, -1), (3, 1, -1)]


def test_what_a_worker_died_with_goes_alone() -> None:
    core = with_brief_items(units=1)
    core.processed(2, seconds=1e-5, further=finds(1, 1))
    # Nobody knows which of them it was: each runs again, in a place of its own.
    assert beside(core.crashed(3)) == []
    again = beside(core.crashed(4))
    assert [with_which for _, _, with_which in again] == [-1]


def test_found_sources_go_together_as_well() -> None:
    core = with_brief_items(units=1)
    found = finds(1, 1, 1, stage=0)
    assert beside(core.processed(2, seconds=1e-5, further=found)) == [(3, 1, -1)]
    # Nobody knew how long that takes; now somebody does.
    assert beside(core.expanded(3, [Found(0)], seconds=1e-5)) == [(4, 1, -1), (5, 1, 4)]
