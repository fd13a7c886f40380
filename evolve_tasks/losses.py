"""What was lost: what workers were at that died, and what becomes of what is given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

from distributed import KilledWorker

from evolve_tasks.answers import Lost, failure_of
from evolve_tasks.core.actions import Expand, Process
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.suspects import MOST_DEATHS
from evolve_tasks.outcome import Failure
from evolve_tasks.record_ledger import RecordLedger
from evolve_tasks.report import Story
from evolve_tasks.stages import Stage
from evolve_tasks.telling import tell_lost
from evolve_tasks.under_way import UnderWay
from evolve_tasks.workers.calls import GivenUp, SourceCall, item_run_id
from evolve_tasks.workers.marks import PACKING, marks_path, number_of, packing, take_marks


@dataclass(slots=True)
class Losses:
    """Reads the marks of dead workers, and makes failures of what is given up.

    Args:
        run: unique name of the run.
        stages: the stages.
        ledger: decides what Prefect sees.
        story: is told of what failed.
        under_way: what has begun.
        given_up: task runs that somebody has to end in the API.
        units: ids of task runs of whole units that did not come back; workers may have ended them.
    """

    run: str
    stages: Sequence[Stage]
    ledger: RecordLedger
    story: Story
    under_way: UnderWay
    given_up: list[GivenUp] = field(default_factory=list)
    units: list[UUID] = field(default_factory=list)
    # By id of the worker: where ports are fixed, the next one has the address of the dead one.
    _marks: dict[str, set[tuple[int, int]] | None] = field(default_factory=dict)
    # Lost, and not at work: by unit that gave it, list, and position.
    _unseen: Counter[tuple[int, int, int]] = field(default_factory=Counter)

    def running(self, action: Expand | Process, lost: Lost) -> list[int] | None:
        """What of a unit its worker was at when it died; `None` if nobody knows."""
        if not isinstance(lost.error, KilledWorker):
            return None
        worker = lost.error.last_worker
        if worker.server_id not in self._marks:
            self._marks[worker.server_id] = take_marks(marks_path(self.run, worker.address))
        marks = self._marks[worker.server_id]
        if not marks:
            return None
        positions = range(action.start, action.stop)
        if isinstance(action, Process):
            number = number_of(self.under_way.parent(action).index)
            at_work = {item for source, item in marks if source == number}
            packed = packing(action.start) in at_work
            running = at_work & set(positions)
        else:
            # A source is at work also while its items are, in passing or by a nested unit.
            sources = {source for source, _ in marks}
            numbers = [number_of(call.index) for call in self.under_way.calls[action.unit]]
            packed = (numbers[0], PACKING) in marks
            running = {
                position
                for position, number in zip(positions, numbers, strict=True)
                if number in sources
            }
        if packed:
            # All had been worked on: any of them may be what cannot be pickled.
            return None if len(positions) > 1 else list(positions)
        if not running:
            # It may have killed the worker all the same, where nobody looks: on its way there.
            place = action.parent, action.offset, action.start
            self._unseen[place] += 1
            if self._unseen[place] >= MOST_DEATHS:
                return None
        return sorted(running)

    def portions(self, action: Expand | Process, lost: Lost) -> list[Portion]:
        """Failures of a unit that Dask gave up, or that took down all the workers that it may."""
        stage, (_, recording) = self.stages[action.stage], self.under_way.units[action.unit]
        told = None if recording.each else False
        if not lost.crashed:
            self.unit_lost(stage, recording.unit)
        if isinstance(action, Process):
            call = self.under_way.parent(action)
            source = self.under_way.source(call)
            failures = [
                replace(
                    failure_of(lost, stage.name, (*call.index, item), None),
                    source=source,
                    item=f"item {item} of {call.label}",
                )
                for item in range(action.start, action.stop)
            ]
            upstream = self.under_way.parent_run(action)
            for failure in failures:
                run_id = self.item_given_up(stage, call, failure, upstream, told=told)
                tell_lost(self.story, call, failure, run_id)
            return [
                Portion(
                    call.position,
                    source,
                    action.start,
                    action.stop,
                    [],
                    failures,
                    inner=call.inner,
                )
            ]
        portions = []
        for call in self.under_way.calls[action.unit]:
            source = self.under_way.source(call)
            given = None if call.inner else source
            failure = replace(failure_of(lost, stage.name, call.index, given), source=source)
            if call.inner:
                failure = replace(failure, item=f"item {call.label}")
            run_id = self.call_given_up(action, call, failure, told=told)
            tell_lost(self.story, call, failure, run_id)
            portions.append(Portion(call.position, source, 0, 0, [], [failure], inner=call.inner))
        return portions

    def unit_lost(self, stage: Stage, run_id: UUID | None) -> None:
        """Note that a unit did not come back, which was a task run as a whole if it has an id."""
        if run_id is not None and stage.task is not None:
            self.units.append(run_id)

    def call_given_up(
        self,
        action: Expand | Process,
        call: SourceCall,
        failure: Failure,
        *,
        told: bool | None,
    ) -> UUID | None:
        """Have the API know at the end that there is nothing of a source, or of an inner item.

        Args:
            action: the unit that it was in.
            call: what stands for it.
            failure: what became of it.
            told: whether the API has heard of another end of it; `None` if nobody knows.

        Returns:
            The id of its task run; `None` if it has none.
        """
        if call.inner and self.ledger.mode == "sources":
            return None
        stage, above = self.stages[action.stage], self.under_way.parent_run(action)
        return self.give_up(stage, call.run_id, call.label, above, failure, told=told)

    def item_given_up(
        self,
        stage: Stage,
        call: SourceCall,
        failure: Failure,
        upstream: UUID | None,
        *,
        told: bool | None,
    ) -> UUID | None:
        """The same of an item that was to be worked on.

        Args:
            stage: its stage.
            call: the list that it is in.
            failure: what became of it.
            upstream: the task run that gave it.
            told: whether the API has heard of another end of it; `None` if nobody knows.

        Returns:
            The id of its task run; `None` if it has none.
        """
        if self.ledger.mode == "sources":
            return None
        position = failure.index[-1]
        run_id, label = item_run_id(call.run_id, position), f"{call.label} {position}"
        return self.give_up(stage, run_id, label, upstream, failure, told=told)

    def give_up(
        self,
        stage: Stage,
        run_id: UUID,
        label: str,
        upstream: UUID | None,
        failure: Failure,
        *,
        told: bool | None,
    ) -> UUID | None:
        """The same of anything that was to be done.

        Args:
            stage: its stage.
            run_id: id of its task run, if it has one.
            label: what the name of that has in brackets.
            upstream: the task run that gave it.
            failure: what became of it.
            told: whether the API has heard of another end of it; `None` if nobody knows.

        Returns:
            The id of its task run; `None` if it has none.
        """
        if stage.task is None:
            return None
        message, crashed = failure.message, failure.crashed
        if not crashed:
            message = f"{failure.error_type}: {message}"
        name = f"{stage.name}[{label}]"
        self.given_up.append(GivenUp(stage.task, run_id, name, upstream, message, crashed, told))
        return run_id
