"""A run under way: between the core, which decides, and a strategy, which carries out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from distributed import KilledWorker

from evolve_tasks.core.actions import Action, Expand, Process
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.budget import Bounded, FailFast, FailureBudget, Finish, Ignore
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.naming import source_label
from evolve_tasks.options import EvolveOptions, FailurePolicy
from evolve_tasks.outcome import Counts, Failure, StageCounts
from evolve_tasks.stages import Stage
from evolve_tasks.workers.calls import (
    BatchResult,
    ExpandCall,
    Measure,
    ProcessCall,
    SourceResult,
    item_run_id,
)
from evolve_tasks.workers.failing import failure_from
from evolve_tasks.workers.transport import Packed


@dataclass(frozen=True, slots=True)
class Lost:
    """A unit that Dask gave up: its worker died with it, or it could not be sent."""

    error: BaseException


Answer = Measure | BatchResult | SourceResult | Lost


@dataclass(slots=True)
class _OpenSource:
    source: Any
    label: str
    run_id: UUID


class EvolvingRun:
    """What a run knows while it is under way.

    Args:
        run: unique name of the run.
        sources: the sources, taken one at a time when there is room for them.
        stages: the stages.
        options: the options.
        in_flight: items that may be in flight.
        batch: items of the last stage in one unit.
    """

    def __init__(
        self,
        run: str,
        sources: Iterable[Any],
        stages: tuple[Stage, ...],
        options: EvolveOptions,
        *,
        in_flight: int,
        batch: int,
    ) -> None:
        self.run = run
        self.stages = stages
        self.options = options
        self.core = Evolution(
            stages=len(stages),
            in_flight=in_flight,
            buffered=options.limits.buffered,
            batch=batch,
            budget=failure_budget(options.on_failure),
        )
        self.source_error: Exception | None = None
        self.on_source: Callable[[int, Any], None] | None = None
        self.recorded: list[UUID] = []
        self._sources: Iterator[Any] = iter(sources)
        self._open: dict[int, _OpenSource] = {}
        self._actions: dict[int, Expand | Process] = {}
        self._items_recorded = 0

    # -- carrying out actions -----------------------------------------------------------------

    def pull(self) -> list[Action]:
        """Carry out a `Pull`."""
        position = self.core.sources
        try:
            source = next(self._sources)
        except StopIteration:
            return self.core.sources_ended()
        except Exception as error:
            # What was finished is kept: the run stops, and raises with its outcome.
            self.source_error = error
            stopping = self.core.stop(f"the sources ended with {type(error).__name__}: {error}")
            return stopping + self.core.sources_ended()
        self._open[position] = _OpenSource(source, source_label(source), uuid4())
        if self.on_source is not None:
            self.on_source(position, source)
        return self.core.source_arrived()

    def expand_call(self, action: Expand) -> ExpandCall | Lost:
        """What to send for an `Expand`; `Lost` if the source cannot travel."""
        self._actions[action.unit] = action
        entry = self._open[action.source]
        try:
            item = Packed.of(entry.source)
        except Exception as error:
            return Lost(
                TypeError(
                    f"the source of type {type(entry.source).__name__} cannot be pickled "
                    f"({type(error).__name__}: {error}), so it cannot be sent to a worker; give "
                    "a name or address instead and open it in the expanding stage"
                )
            )
        return ExpandCall(action.stage, (action.source,), entry.label, entry.run_id, item)

    def process_call(self, action: Process) -> ProcessCall:
        """What to send for a `Process`."""
        self._actions[action.unit] = action
        entry = self._open[action.source]
        size = action.stop - action.start
        recorded = self.item_allowance() >= size
        if recorded:
            self._items_recorded += size
        return ProcessCall(
            stage=action.stage,
            parent=(action.source,),
            start=action.start,
            stop=action.stop,
            label=entry.label,
            parent_run_id=entry.run_id,
            recorded=recorded,
        )

    def item_allowance(self) -> int:
        """How many more items may have a task run of their own."""
        match self.options.record:
            case "items":
                return 2**31
            case "auto":
                return max(0, self.options.record_budget - self._items_recorded)
            case _:
                return 0

    def source_done(self, position: int) -> None:
        """Carry out a `SourceDone`."""
        self._open.pop(position, None)

    # -- what came of them --------------------------------------------------------------------

    def portions(self, unit: int, answer: Answer) -> list[Portion]:
        """What an answer adds to the outcome; asked before the core is told of it."""
        action = self._actions[unit]
        entry = self._open.get(action.source)
        assert entry is not None, f"unit {unit} was answered after its source was done"
        match answer:
            case BatchResult():
                assert isinstance(action, Process)
                return [self._portion(action.source, entry, action.start, action.stop, answer)]
            case Measure():
                return self._measured(action, entry, answer)
            case SourceResult():
                self._items_recorded += sum(len(batch.recorded) for _, _, batch in answer.batches)
                return self._measured(action, entry, answer.measure) + [
                    self._portion(action.source, entry, start, stop, batch)
                    for start, stop, batch in answer.batches
                ]
            case Lost():
                failures = self._lost(action, entry, answer.error)
                start, stop = (action.start, action.stop) if isinstance(action, Process) else (0, 0)
                return [Portion(action.source, entry.source, start, stop, [], failures)]

    def tell(self, unit: int, answer: Answer) -> list[Action]:
        """Tell the core of an answer."""
        action = self._actions.pop(unit)
        core = self.core
        match answer:
            case BatchResult():
                return core.processed(unit, failed=len(answer.failures), not_run=answer.not_run)
            case SourceResult() if answer.measure.failure is None and not answer.measure.not_run:
                return core.ran_whole(
                    unit,
                    answer.measure.size,
                    failed=sum(len(batch.failures) for _, _, batch in answer.batches),
                    not_run=answer.measure.size
                    - sum(stop - start - batch.not_run for start, stop, batch in answer.batches),
                )
            case SourceResult():
                return self._tell_measure(unit, answer.measure)
            case Measure():
                return self._tell_measure(unit, answer)
            case Lost():
                if isinstance(action, Process):
                    return core.processed(unit, failed=action.stop - action.start)
                return core.expansion_failed(unit)

    def _tell_measure(self, unit: int, measure: Measure) -> list[Action]:
        if measure.not_run:
            return self.core.expansion_not_run(unit)
        if measure.failure is not None:
            return self.core.expansion_failed(unit)
        return self.core.expanded(unit, measure.size)

    def _measured(
        self, action: Expand | Process, entry: _OpenSource, measure: Measure
    ) -> list[Portion]:
        if measure.recorded:
            self.recorded.append(entry.run_id)
        if measure.failure is None:
            return []
        failure = replace(measure.failure, source=entry.source)
        return [Portion(action.source, entry.source, 0, 0, [], [failure])]

    def _portion(
        self, position: int, entry: _OpenSource, start: int, stop: int, batch: BatchResult
    ) -> Portion:
        self.recorded += [item_run_id(entry.run_id, item) for item in batch.recorded]
        return Portion(
            position,
            entry.source,
            start,
            stop - batch.not_run,
            batch.values.value(),
            [replace(failure, source=entry.source) for failure in batch.failures],
        )

    def _lost(
        self, action: Expand | Process, entry: _OpenSource, error: BaseException
    ) -> list[Failure]:
        crashed = isinstance(error, KilledWorker)
        stage = self.stages[action.stage].name
        if isinstance(action, Expand):
            failure = failure_from(error, stage=stage, index=(action.source,), item=entry.source)
            return [replace(failure, source=entry.source, crashed=crashed)]
        return [
            replace(
                failure_from(error, stage=stage, index=(action.source, position), item=None),
                source=entry.source,
                item=f"item {position} of {entry.label}",
                crashed=crashed,
            )
            for position in range(action.start, action.stop)
        ]

    def counts(self) -> Counts:
        """The numbers as they stand."""
        by_stage = {
            stage.name: StageCounts(
                tally.discovered, tally.done, tally.failed, tally.resumed, tally.not_run
            )
            for stage, tally in zip(self.stages, self.core.tallies, strict=True)
        }
        last = by_stage[self.stages[-1].name]
        return Counts(
            sources=self.core.sources,
            sources_failed=self.core.tallies[0].failed,
            discovered=last.discovered,
            done=last.done,
            failed=last.failed,
            resumed=last.resumed,
            not_run=last.not_run,
            by_stage=by_stage,
        )


def failure_budget(policy: FailurePolicy) -> FailureBudget:
    """The core's form of a failure policy."""
    match policy:
        case "finish":
            return Finish()
        case "fail_fast":
            return FailFast()
        case "ignore":
            return Ignore()
        case _:
            return Bounded(policy.count, policy.ratio)
