"""What the answers of units add to the outcome, and which task runs they have left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from evolve_tasks.answers import Answer, Lost, failure_of
from evolve_tasks.beside import Beside
from evolve_tasks.core.actions import Expand, Extra, Follow, Process
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.feeding import Arrival
from evolve_tasks.following import Following
from evolve_tasks.known_before import KnownBefore
from evolve_tasks.leads import Find, Runs
from evolve_tasks.losses import Losses
from evolve_tasks.outcome import Failure
from evolve_tasks.report import Story
from evolve_tasks.stages import Stage
from evolve_tasks.streams import Streams
from evolve_tasks.telling import tell_batch, tell_expansion, tell_lost
from evolve_tasks.under_way import UnderWay
from evolve_tasks.unreadable import Salvaged, set_apart, unreadable
from evolve_tasks.workers.calls import (
    BatchResult,
    Measure,
    NestedResult,
    Recorded,
    Recording,
    SourceCall,
    SourceEnd,
    item_run_id,
)
from evolve_tasks.workers.streaming import Chunk
from evolve_tasks.workers.transport import Unpacked


@dataclass(slots=True)
class Taking:
    """Makes portions of answers, before the core is told of them.

    Args:
        core: the core of the run.
        stages: the stages.
        story: is told what came back.
        under_way: what has begun.
        known: what need not be done again.
        following: takes in what was found.
        losses: what workers took down.
        beside: takes what is collected and combined.
        streams: the units that give on the way.
        recorded: task runs that the API is to know, in the order in which they were heard of.
        logger: is told of each source that was expanded.
        on_expanded: is told name and number of items of each source that was expanded.
    """

    core: Evolution
    stages: Sequence[Stage]
    story: Story
    under_way: UnderWay
    known: KnownBefore
    following: Following
    losses: Losses
    beside: Beside
    streams: Streams
    recorded: list[Recorded]
    logger: logging.Logger | Any
    on_expanded: Callable[[str, int], None] = lambda label, size: None
    _at_work: dict[int, Collection[int] | None] = field(default_factory=dict)  # by unit that died

    def at_work(self, unit: int) -> Collection[int] | None:
        """What of a unit that died was at work; `None` if nobody knows; asked once."""
        return self._at_work.pop(unit, None)

    def portions(self, unit: int, answer: Answer) -> list[Portion]:
        """What an answer adds to the outcome; asked before the core is told of it."""
        if isinstance(answer, Arrival):
            return []
        if isinstance(answer, Chunk):
            return self._unreadable(answer) if answer.unreadable else []
        action, recording = self.under_way.units[unit]
        if isinstance(action, Extra):
            return self._extra_portions(action, recording, answer)
        if isinstance(action, Follow):
            portions = self.following.held_back(action)
        else:
            self._set_apart(action, answer)
            portions = self._portions(unit, action, recording, answer)
        self.beside.gather(portions)
        return portions

    def _unreadable(self, chunk: Chunk) -> list[Portion]:
        """Failures of items that came on the way, and cannot be unpickled here."""
        action, _ = self.under_way.units[chunk.unit]
        assert isinstance(action, Expand), "nothing else gives on the way"
        call = self.under_way.calls[chunk.unit][chunk.offset]
        stage = self.stages[action.stage + 1]
        start = max(chunk.start, self.streams.given(chunk))
        source, above = self.under_way.source(call), self.under_way.run_of(chunk.unit, call)
        failures = [
            replace(unreadable(stage.name, call, position, chunk.unreadable), source=source)
            for position in range(start, chunk.start + chunk.size)
        ]
        for failure in failures:
            # Whoever was to work on it has never had it.
            run_id = self.losses.item_given_up(stage, call, failure, above, told=False)
            tell_lost(self.story, call, failure, run_id)
        portion = Portion(
            call.position,
            source,
            start,
            chunk.start + chunk.size,
            [],
            failures,
            inner=call.inner,
        )
        self.beside.gather([portion])
        return [portion]

    def _set_apart(self, action: Expand | Process, answer: Answer) -> None:
        """Make failures of single results that cannot be unpickled here."""
        if isinstance(answer, BatchResult):
            if isinstance(answer.values, Salvaged):
                call, above = self.under_way.parent(action), self.under_way.parent_run(action)
                self._set_batch_apart(action.stage, call, above, action.start, action.stop, answer)
        elif isinstance(answer, Measure):
            calls = self.under_way.calls[action.unit]
            for call, end in zip(calls, answer.ends, strict=True):
                if end.failure is not None and not end.has_run:
                    run_id = self.losses.call_given_up(action, call, end.failure, told=False)
                    end.has_run = run_id is not None
            if not isinstance(answer.values, Salvaged):
                return
            values = answer.values.value()
            for place, (call, end) in enumerate(zip(calls, answer.ends, strict=True)):
                above = self.under_way.run_of(action.unit, call)
                positions = range(end.ended - end.not_run)
                values[place] = self._readable(
                    action.stage + 1, call, above, positions, values[place], end
                )
        elif isinstance(answer, NestedResult):
            self._set_apart(action, answer.measure)
            for batch in answer.batches:
                call = self.under_way.calls[action.unit][batch.offset]
                above = self.under_way.run_of(action.unit, call)
                self._set_batch_apart(
                    action.stage + 1, call, above, batch.start, batch.stop, batch.result
                )
                if not batch.result.unit_recorded:
                    self.losses.unit_lost(self.stages[action.stage + 1], batch.run_id)

    def _set_batch_apart(
        self,
        stage: int,
        call: SourceCall,
        above: UUID | None,
        start: int,
        stop: int,
        batch: BatchResult,
    ) -> None:
        if isinstance(batch.values, Salvaged):
            positions, values = range(start, stop - batch.not_run), batch.values.value()
            batch.values = Unpacked(self._readable(stage, call, above, positions, values, batch))
        recorded = set(batch.recorded)
        for failure in batch.failures:  # a nested unit may have lost it
            if failure.index[-1] not in recorded:
                self._give_up(stage, call, above, failure, batch, told=None)

    def _give_up(
        self,
        number: int,
        call: SourceCall,
        above: UUID | None,
        failure: Failure,
        part: BatchResult | SourceEnd,
        *,
        told: bool | None,
    ) -> None:
        run_id = self.losses.item_given_up(self.stages[number], call, failure, above, told=told)
        if run_id is not None and not told:
            part.recorded = [*part.recorded, failure.index[-1]]

    def _readable(
        self,
        number: int,
        call: SourceCall,
        above: UUID | None,
        positions: range,
        values: list[Any],
        part: BatchResult | SourceEnd,
    ) -> list[Any]:
        """The results that are left; the others are failures, and their task runs say so."""
        name = self.stages[number].name
        left, unread = set_apart(name, call, positions, values, part.failures)
        part.failures = sorted([*part.failures, *unread], key=lambda failure: failure.index)
        completed = set(part.recorded)
        for failure in unread:
            told = failure.index[-1] in completed
            self._give_up(number, call, above, failure, part, told=told)
        return left

    def _extra_portions(self, action: Extra, recording: Recording, answer: Answer) -> list[Portion]:
        """What came of something beside the stages."""
        lost = None
        if isinstance(answer, Lost):
            if answer.crashed and not self.core.gives_up(action.unit):
                return []  # it runs again
            lost = failure_of(answer, self.beside.name_of(action), self.beside.index_of(action), "")
        portions, recorded = self.beside.answered(action, recording, answer, lost)
        self.recorded += recorded
        return portions

    def _portions(
        self, unit: int, action: Expand | Process, recording: Recording, answer: Answer
    ) -> list[Portion]:
        match answer:
            case BatchResult():
                parent = self.under_way.parent(action)
                self._note_batch(recording.unit, parent, action.start, action.stop, answer)
                tell_batch(self.story, parent, action.start, action.stop, answer)
                keys = self.known.keys(action.parent, action.offset)
                finds: list[Find] = []
                whole = recording.unit if answer.unit_recorded else recording.within
                portions = self._portion(
                    finds, 0, parent, action.start, action.stop, answer, whole, keys
                )
                return portions + self.following.found_by(finds, unit, 0)
            case Measure():
                self._tell_expansion(action, answer)
                finds = []
                portions = self._measured(finds, action, recording, answer)
                first = action.stop - action.start + self.streams.lists(unit)
                return portions + self.following.found_by(finds, unit, first)
            case NestedResult():
                self._tell_expansion(action, answer.measure)
                finds = []
                portions = self._measured(finds, action, recording, answer.measure)
                for batch in answer.batches:
                    call = self.under_way.calls[unit][batch.offset]
                    tell_batch(self.story, call, batch.start, batch.stop, batch.result)
                    self._note_batch(batch.run_id, call, batch.start, batch.stop, batch.result)
                    whole = batch.run_id if batch.result.unit_recorded else None
                    portions += self._portion(
                        finds, batch.offset, call, batch.start, batch.stop, batch.result, whole
                    )
                return portions + self.following.found_by(finds, unit, action.stop - action.start)
            case Lost():
                if answer.crashed:
                    running = self._at_work[unit] = self.losses.running(action, answer)
                    if not self.core.gives_up(unit, running):
                        return []  # it runs again
                return self.losses.portions(action, answer)
            case _:
                raise AssertionError(f"{action} was answered with {type(answer).__name__}")

    def _tell_expansion(self, action: Expand | Process, measure: Measure) -> None:
        calls = self.under_way.calls[action.unit]
        for label, size in tell_expansion(self.story, action.stage, calls, measure):
            if action.parent < 0:
                self.logger.debug("%s gave %d items", label, size)
                self.on_expanded(label, size)

    def _portion(
        self,
        finds: list[Find],
        offset: int,
        call: SourceCall,
        start: int,
        stop: int,
        batch: BatchResult,
        whole: UUID | None,
        keys: bytes = b"",
    ) -> list[Portion]:
        source = self.under_way.source(call)
        self._note_items(call, batch.recorded, batch.failures)
        failures = [replace(failure, source=source) for failure in batch.failures]
        values, stop = batch.values.value(), stop - batch.not_run
        runs = Runs(set(batch.recorded), whole)
        mores = self.following.found(finds, offset, call, batch.discoveries, runs)
        self.beside.parts(call.index, batch.parts)
        portion = Portion(call.position, source, start, stop, values, failures, inner=call.inner)
        if len(values) + len(failures) < stop - start:
            return [portion]  # results are combined where they are
        return self.known.noted(portion, mores, keys).cut_after(mores)

    def _measured(
        self, finds: list[Find], action: Expand | Process, recording: Recording, measure: Measure
    ) -> list[Portion]:
        assert isinstance(action, Expand)
        if measure.recorded and recording.unit is not None:
            first, last = (
                self.under_way.calls[action.unit][0].label,
                self.under_way.calls[action.unit][-1].label,
            )
            label = first if action.stop - action.start == 1 else f"{first} … {last}"
            self.recorded.append(Recorded(recording.unit, action.stage, label))
        portions = []
        values = measure.values.value() or [[]] * len(measure.ends)
        calls = self.under_way.calls[action.unit]
        items = [None] * len(calls) if measure.items is None else measure.items.value()
        for offset, (call, end, worked_out) in enumerate(
            zip(calls, measure.ends, values, strict=True)
        ):
            source = self.under_way.source(call)
            run = self.under_way.run_of(action.unit, call) or (call.run_id if end.has_run else None)
            # Of equal sources the first one has all results; the others have nothing to collect.
            if not self.known.is_met(call.position) if call.known else not end.skipped:
                known_run = None if call.known else run
                self.beside.expanded(action, offset, call, items[offset], known_run)
            self.beside.parts(call.index, end.parts)
            portions += self.known.take_over(finds, action, offset, call, end)
            if call.known:
                continue
            if end.has_run:
                error = None if end.failure is None else str(end.failure)
                self.recorded.append(Recorded(call.run_id, action.stage, call.label, error))
            self._note_items(call, end.recorded, end.failures)
            failures = end.failures
            if end.failure is not None:
                failures = [end.failure, *failures]
            if failures or end.ended:
                portion = Portion(
                    call.position,
                    source,
                    0,
                    end.ended - end.not_run,
                    worked_out,
                    [replace(failure, source=source) for failure in failures] if failures else (),
                    inner=call.inner,
                )
                if not end.discoveries and not self.known.journaled:
                    portions.append(portion)
                    continue
                runs = Runs(set(end.recorded), run)
                mores = self.following.found(finds, offset, call, end.discoveries, runs)
                if len(worked_out) < end.ended - end.not_run - len(end.failures):
                    portions.append(portion)  # results are combined where they are
                else:
                    portions += self.known.noted(portion, mores).cut_after(mores)
        return portions

    def _note_batch(
        self, run_id: UUID | None, call: SourceCall, start: int, stop: int, batch: BatchResult
    ) -> None:
        if batch.unit_recorded and run_id is not None:
            items = str(start) if stop - start == 1 else f"{start}-{stop - 1}"
            label = f"{call.label} {items}"
            self.recorded.append(Recorded(run_id, len(self.stages) - 1, label))

    def _note_items(
        self, call: SourceCall, positions: Sequence[int], failures: Sequence[Failure]
    ) -> None:
        errors = {failure.index[-1]: str(failure) for failure in failures}
        self.recorded += [
            Recorded(
                item_run_id(call.run_id, position),
                len(self.stages) - 1,
                f"{call.label} {position}",
                errors.get(position),
            )
            for position in positions
        ]
