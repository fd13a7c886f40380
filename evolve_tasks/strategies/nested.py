"""`nested`: tasks from tasks. A source is one task; it submits its items from the worker.

The flow sees sources only, which spares it the traffic of the items. A source's items stand
in a window of their own, a share of the run's, so that all of them together stay within it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.budget import Bounded, FailFast, FailureBudget, Finish, Ignore
from evolve_tasks.evolving import EvolvingRun, failure_budget
from evolve_tasks.strategies.drive import drive
from evolve_tasks.strategies.submitting import FutureCarrier, Submitter
from evolve_tasks.workers.calls import ExpandCall
from evolve_tasks.workers.nested import NestedCall


@dataclass(frozen=True, slots=True)
class Shares:
    """How the window of a run is divided.

    Args:
        sources: sources that may be under way at a time.
        items: items that each of them may have in flight.
    """

    sources: int
    items: int


def shares(in_flight: int | None, threads: int, batch: int) -> Shares:
    """Divide the window between sources.

    With a bound that the user gave, sources x items never exceeds it. Without one, each
    source may fill the cluster: the last one left then still uses every thread.

    Args:
        in_flight: the bound that was given.
        threads: worker threads of the cluster.
        batch: items in one Dask task.

    Example:
        >>> shares(in_flight=12, threads=4, batch=1)
        Shares(sources=8, items=1)
    """
    if in_flight is None:
        return Shares(sources=max(16, 4 * threads), items=max(4, 2 * threads) * batch)
    # A source that rejoins or waits for its parse leaves its share idle: more sources than
    # threads keep the threads busy, fewer leave each of them enough items.
    sources = max(1, min(in_flight // batch, 2 * threads))
    return Shares(sources=sources, items=in_flight // sources)


def run_nested(
    run: EvolvingRun, submitter: Submitter, *, items: int, batch: int
) -> Generator[Portion, None, None]:
    """Submit sources as tasks that submit their items."""
    return drive(run, _NestedCarrier(run, submitter, items=items, batch=batch))


class _NestedCarrier(FutureCarrier):
    def __init__(self, run: EvolvingRun, submitter: Submitter, *, items: int, batch: int) -> None:
        super().__init__(submitter)
        self._run = run
        self._items = items
        self._batch = batch
        self._budget = _within_source(failure_budget(run.options.on_failure))

    def expand(self, unit: int, call: ExpandCall) -> None:
        nested = NestedCall(
            expand=call,
            in_flight=self._items,
            batch=self._batch,
            allowance=self._run.item_allowance(),
            budget=self._budget,
        )
        self.ended.add(unit, self.submitter.nested(unit, nested))


def _within_source(budget: FailureBudget) -> FailureBudget:
    """What a source can judge by itself: a share needs the whole run, a count does not."""
    match budget:
        case FailFast() | Ignore():
            return budget
        case Bounded(count=count) if count is not None:
            return Bounded(count, None)
        case _:
            return Finish()
