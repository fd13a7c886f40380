"""`nested`: tasks from tasks. A source is one task; it submits its items from the worker.

The flow sees sources only, which spares it the traffic of the items. The items of a unit (a
source, or several short ones) stand in a window of their own, a share of the run's, so that all
of them together stay within it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

from evolve_tasks.answers import Answer
from evolve_tasks.core.actions import Expand
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.bottleneck import Bottleneck
from evolve_tasks.core.budget import Bounded, FailFast, FailureBudget, Finish, Ignore
from evolve_tasks.core.window import Window
from evolve_tasks.evolving import EvolvingRun, failure_budget
from evolve_tasks.options import EvolveOptions
from evolve_tasks.stages import Stage
from evolve_tasks.strategies.carrying import FutureCarrier
from evolve_tasks.strategies.choice import generates
from evolve_tasks.strategies.drive import drive
from evolve_tasks.strategies.submitting import Submitter
from evolve_tasks.workers.calls import ExpandCall
from evolve_tasks.workers.nested import NestedCall


@dataclass(frozen=True, slots=True)
class Shares:
    """How the window of a run is divided.

    Args:
        units: units of sources that may be under way at a time.
        items: items that each of them may have in flight.
    """

    units: int
    items: int


def shares(in_flight: int | None, threads: int) -> Shares | None:
    """Divide a window that the user gave between units: units x items never exceeds it.

    Args:
        in_flight: the bound that was given; without one each unit may fill the cluster, so
            that the last one left still uses every thread.
        threads: worker threads of the cluster.

    Returns:
        The shares; `None` where nothing is bounded.

    Example:
        >>> shares(in_flight=12, threads=2)
        Shares(units=4, items=3)
    """
    if in_flight is None:
        return None
    # A unit that rejoins or waits for its parse leaves its share idle: more units than threads
    # keep the threads busy, fewer leave each of them enough items.
    units = max(1, min(in_flight, 2 * threads))
    return Shares(units=units, items=in_flight // units)


def flow_sends_items(
    options: EvolveOptions, stages: Sequence[Stage], *, iterates: bool
) -> str | None:
    """Why the flow sends items itself, though the strategy is `nested`; `None` if it does not.

    A journal is written by the flow, and has to have each item before it counts as done: what a
    source keeps to itself until its end would be done again. And a source that waits for its
    items holds the resources that its stage takes, which they may need. With more than two
    stages each level would hold its own window open: the flow sees all levels, and bounds them
    together. So it does where the items of the whole run are bounded, or compared, where somebody
    changes the bound as it goes, and where a loop takes each result as it comes.
    """
    if iterates:
        return "the loop gets each result as it comes, and holds back what is ahead of it"
    if (variable := options.limits.in_flight_variable) is not None:
        return f"the variable {variable!r} changes how many are in flight"
    if any(map(generates, stages[:-1])):
        return "what a generator gives on its way is handed out by the flow"
    if options.unique:
        return "unique=True compares the items of all sources"
    if options.limits.max_items is not None:
        return "limits.max_items bounds the items of all sources together"
    if len(stages) > 2:
        return f"one window is over all {len(stages)} stages"
    if options.journal:
        return "a journal has to have each item as soon as it ends"
    if (options.resources or {}).get(stages[0].name):
        return f"{stages[0].name} would hold its resources while its items run"
    return None


def run_nested(
    run: EvolvingRun, submitter: Submitter, threads: int
) -> Generator[Portion, None, None]:
    """Submit sources as tasks that submit their items."""
    return drive(run, _NestedCarrier(run, submitter, threads))


class _NestedCarrier(FutureCarrier):
    def __init__(self, run: EvolvingRun, submitter: Submitter, threads: int) -> None:
        super().__init__(run, submitter)
        self._threads = threads
        self._budget = _within_source(failure_budget(run.options.on_failure))
        self._sends_items = flow_sends_items(run.options, run.stages, iterates=run.iterates)

    def expand(self, action: Expand, call: ExpandCall) -> None:
        if action.crashes or action.parent >= 0 or self._sends_items:
            # The run itself sends its items: they must not be lost with their source again, and
            # it knows best what was found on the way.
            super().expand(action, call)
            return
        ledger, threads = self._run.ledger, self._threads
        # Several sources spend at the same time: each gets a part of what is left, and gives
        # back what it did not need.
        allowance, batches = ledger.lend(action.unit)
        share = shares(self._run.in_flight, threads)
        nested = NestedCall(
            expand=call,
            window=(
                Window(units=max(4, 2 * threads), threads=threads)
                if share is None
                else Window(share.items, threads=threads)
            ),
            batch=self._run.options.batch_size,
            allowance=allowance,
            batches=batches,
            budget=self._budget,
            item_s=self._run.core.item_s,
        )
        turn = self._run.core.turn(action.unit)
        self.ended.add(action.unit, self.submitter.nested(action.unit, nested, turn=turn))


def run_adaptive(
    run: EvolvingRun, submitter: Submitter, threads: int
) -> Generator[Portion, None, None]:
    """Submit items from the flow as long as it keeps up; then let new sources submit theirs."""
    return drive(run, _AdaptiveCarrier(run, submitter, threads))


class _AdaptiveCarrier(_NestedCarrier):
    """Changes from `as_completed` to `nested` when the flow's process cannot keep up."""

    def __init__(self, run: EvolvingRun, submitter: Submitter, threads: int) -> None:
        super().__init__(run, submitter, threads)
        self._adapts = self._sends_items is None and run.in_flight is None
        self._sends_items = self._sends_items or "the flow keeps up"
        self._bottleneck = Bottleneck()
        self._answered = time.monotonic()

    def answers(self) -> Iterable[tuple[int, Answer]]:
        asked = time.monotonic()
        answers = list(super().answers())
        before, self._answered = self._answered, time.monotonic()
        if self._adapts:
            share = self._bottleneck.spent(
                busy_s=asked - before,
                waited_s=self._answered - asked,
                starving=len(self.ended.under_way()) < 2 * self._threads,
            )
            if share is not None:
                self._adapts, self._sends_items = False, None
                self._run.adapt(
                    f"nested from source {self._run.core.sources} on, as the flow's process was "
                    f"busy for {share:.0%} of the time, and threads had no work"
                )
        return answers


def _within_source(budget: FailureBudget) -> FailureBudget:
    """What a source can judge by itself: a share needs the whole run, a count does not."""
    match budget:
        case FailFast() | Ignore():
            return budget
        case Bounded(count=count) if count is not None:
            return Bounded(count, None)
        case _:
            return Finish()
