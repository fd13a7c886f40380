"""What workers took down with them: what of it they were at, and what becomes of it if given up."""

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
from evolve_tasks.record_ledger import RecordLedger
from evolve_tasks.report import Story
from evolve_tasks.stages import Stage
from evolve_tasks.telling import tell_lost
from evolve_tasks.under_way import UnderWay
from evolve_tasks.workers.calls import GivenUp, item_run_id
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
    """

    run: str
    stages: Sequence[Stage]
    ledger: RecordLedger
    story: Story
    under_way: UnderWay
    given_up: list[GivenUp] = field(default_factory=list)
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
        stage = self.stages[action.stage].name
        if isinstance(action, Process):
            call = self.under_way.parent(action)
            source = self.under_way.source(call)
            failures = [
                replace(
                    failure_of(lost, stage, (*call.index, item), None),
                    source=source,
                    item=f"item {item} of {call.label}",
                )
                for item in range(action.start, action.stop)
            ]
            run_id = item_run_id(call.run_id, action.start)
            is_task = self.stages[action.stage].task is not None
            recorded = lost.crashed and is_task and self.ledger.mode != "sources"
            for failure in failures:
                tell_lost(self.story, call, failure, run_id if recorded else None)
            if recorded:
                upstream = self.under_way.parent_run(action)
                label = f"{call.label} {action.start}"
                self._give_up(action.stage, run_id, label, upstream, failures[0].message)
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
            failure = replace(failure_of(lost, stage, call.index, given), source=source)
            if call.inner:
                failure = replace(failure, item=f"item {call.label}")
            recorded = lost.crashed and self.stages[action.stage].task is not None
            tell_lost(self.story, call, failure, call.run_id if recorded else None)
            if recorded:
                above = self.under_way.parent_run(action)
                self._give_up(action.stage, call.run_id, call.label, above, failure.message)
            portions.append(Portion(call.position, source, 0, 0, [], [failure], inner=call.inner))
        return portions

    def _give_up(
        self, stage: int, run_id: UUID, label: str, upstream: UUID | None, message: str
    ) -> None:
        task = self.stages[stage].task
        if task is not None:
            name = f"{self.stages[stage].name}[{label}]"
            self.given_up.append(GivenUp(task, run_id, name, upstream, message))
