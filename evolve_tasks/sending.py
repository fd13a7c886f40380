"""What a run sends for the actions of its core, and what Prefect is to see of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from evolve_tasks.answers import Answer, Lost, failure_of
from evolve_tasks.beside import Beside
from evolve_tasks.core.actions import Expand, Process
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.known_before import KnownBefore
from evolve_tasks.outcome import Failure
from evolve_tasks.record_ledger import RecordLedger
from evolve_tasks.stages import Stage
from evolve_tasks.streams import Streams
from evolve_tasks.under_way import UnderWay
from evolve_tasks.workers.calls import (
    ExpandCall,
    Measure,
    NestedResult,
    Part,
    ProcessCall,
    Recording,
    SourceCall,
    SourceEnd,
    Span,
)
from evolve_tasks.workers.failing import failure_from
from evolve_tasks.workers.streaming import Chunk
from evolve_tasks.workers.transport import NOTHING, Packed


@dataclass(frozen=True, slots=True)
class Sending:
    """Makes the call for an action, and notes it as under way.

    Args:
        core: the core of the run.
        stages: the stages.
        ledger: decides what Prefect sees.
        under_way: what has begun.
        known: what need not be done again.
        streams: the units that give on the way.
        beside: is told of inner items that may be collected.
        items_elsewhere: items need other workers than their sources.
        fail_fast: nothing begins once something is known to have failed.
        one_by_one: expansions come one after the other, and share task runs.
    """

    core: Evolution
    stages: Sequence[Stage]
    ledger: RecordLedger
    under_way: UnderWay
    known: KnownBefore
    streams: Streams
    beside: Beside
    items_elsewhere: bool
    fail_fast: bool
    one_by_one: bool
    _refused: dict[int, dict[int, Failure]] = field(default_factory=dict)  # by unit and offset

    def expand(self, action: Expand) -> ExpandCall | Measure:
        """What to send for an `Expand`; a `Measure` if there is nothing to send."""
        if action.parent >= 0:
            return self.inner(action)
        entries = [
            self.under_way.sources[position] for position in range(action.start, action.stop)
        ]
        self.under_way.calls[action.unit] = tuple(call for _, call in entries)
        if all(call.known for _, call in entries):
            self.under_way.units[action.unit] = action, Recording()
            return Measure([SourceEnd() for _ in entries], NOTHING, 0.0, 0.0, False, Span())
        is_task = self.stages[action.stage].task is not None
        each = self.ledger.each_source(len(entries), is_task)
        alone = len(entries) == 1 and not (action.inline or self.one_by_one)
        recording = self._as_unit(Recording(each=each), is_task, alone=alone)
        self.under_way.units[action.unit] = action, recording
        if is_task:
            self.under_way.note_runs(action.unit, recording)
        sources = self.under_way.calls[action.unit]
        given = [None if call.known else source for source, call in entries]
        items, refused = self._packed(action.stage, sources, given)
        if refused:
            left = [offset for offset, one in enumerate(sources) if not one.known]
            if self.fail_fast or all(offset in refused for offset in left):
                ends = [SourceEnd(skipped=not one.known) for one in sources]
                for offset, failure in refused.items():
                    ends[offset] = SourceEnd(failure=failure)
                return Measure(ends, NOTHING, 0.0, 0.0, False, Span())
            # The others go without them, and the answer is completed when it comes.
            self._refused[action.unit] = refused
            sources = tuple(
                replace(call, known=call.known or offset in refused)
                for offset, call in enumerate(sources)
            )
        inline = 0 if self._items_apart(sources) else action.inline
        stream = self.streams.call(action.unit, action.stage, sources)
        return ExpandCall(
            action.stage, sources, items, inline, recording, action.crashes, stream=stream
        )

    def completed(self, unit: int, answer: Answer) -> Answer:
        """The answer to an `Expand`, with those sources of it that could not be sent."""
        if isinstance(answer, Lost) and not answer.crashed:
            answer = self._lost_apart(unit, answer)
        if unit in self._refused and not isinstance(answer, Chunk):
            refused = self._refused.pop(unit)
            measure = answer.measure if isinstance(answer, NestedResult) else answer
            if isinstance(measure, Measure):
                for offset, failure in refused.items():
                    measure.ends[offset] = SourceEnd(failure=failure)
        return answer

    def _lost_apart(self, unit: int, lost: Lost) -> Lost | Measure:
        """What was lost, without those sources for which nobody was asked."""
        action, _ = self.under_way.units[unit]
        calls = self.under_way.calls.get(unit, ())
        apart = unit in self._refused or any(call.known for call in calls)
        if not isinstance(action, Expand) or not apart:
            return lost
        self.ledger.give_back(unit)
        stage = self.stages[action.stage].name
        ends = []
        for call in calls:
            source = self.under_way.source(call)
            failure = None if call.known else failure_of(lost, stage, call.index, source)
            ends.append(SourceEnd(failure=failure))
        return Measure(ends, NOTHING, 0.0, 0.0, False, Span())

    def _packed(
        self, stage: int, calls: Sequence[SourceCall], sources: Sequence[Any]
    ) -> tuple[Packed, dict[int, Failure]]:
        """Sources as they travel; which of them cannot, and why, by their place."""
        try:
            return Packed.tried(sources), {}
        except Exception as error:
            together = error

        def refusal(offset: int, error: Exception) -> Failure:
            source = sources[offset]
            said = TypeError(
                f"a source of type {type(source).__name__} cannot be pickled and unpickled "
                f"({type(error).__name__}: {error}), so it cannot be sent to a worker; give a "
                "name or address instead and open it in the expanding stage"
            )
            name = self.stages[stage].name
            return failure_from(said, stage=name, index=calls[offset].index, item=source)

        refused = {}
        for offset, source in enumerate(sources):
            try:
                Packed.tried(source)
            except Exception as error:
                refused[offset] = refusal(offset, error)
        try:
            rest = [None if offset in refused else one for offset, one in enumerate(sources)]
            return Packed.of(rest), refused
        except Exception:  # each can travel, and all of them cannot
            left = [offset for offset, call in enumerate(calls) if not call.known]
            return NOTHING, {offset: refusal(offset, together) for offset in left}

    def process(
        self, action: Process, first: Recording | None = None, *, leads: bool = False
    ) -> ProcessCall:
        """What to send for a `Process`.

        Args:
            action: what is to be done.
            first: what Prefect sees of the unit with which it goes together, if it does.
            leads: others go together with it.
        """
        parent = self.under_way.parent(action)
        recording = self._recording(action, first, leads)
        part = self._part(action, parent)
        lead = self.under_way.leads.get(action.parent, action.offset)
        items = None if lead is None else lead.packed(action.start, action.stop)
        return ProcessCall(action.stage, parent, part, recording, action.crashes, items)

    def inner(
        self, action: Expand, first: Recording | None = None, *, leads: bool = False
    ) -> ExpandCall:
        """What to send for items that are expanded further; they stay where they are.

        Args:
            action: what is to be done.
            first: what Prefect sees of the unit with which it goes together, if it does.
            leads: others go together with it.
        """
        lead = self.under_way.leads.get(action.parent, action.offset)
        if lead is not None:
            parent, part = lead.above(action.start), None
            sources = lead.calls(action.start, action.stop)
            items = lead.packed(action.start, action.stop)
        else:
            parent = self.under_way.parent(action)
            sources = tuple(parent.item(item) for item in range(action.start, action.stop))
            part, items = self._part(action, parent), NOTHING
        self.under_way.calls[action.unit] = sources
        self.beside.begun(action, sources)
        recording = self._recording(action, first, leads)
        return ExpandCall(
            stage=action.stage,
            sources=sources,
            items=items,
            inline=0 if self._items_apart(sources) else action.inline,
            recording=recording,
            crashes=action.crashes,
            part=part,
            stream=self.streams.call(action.unit, action.stage, sources),
        )

    def _recording(
        self, action: Expand | Process, first: Recording | None, leads: bool
    ) -> Recording:
        """What Prefect sees of a unit of items."""
        is_task, upstream = self.stages[action.stage].task is not None, None
        if action.parent >= 0:
            upstream = self.under_way.parent_run(action)
        if first is not None and not first.each:
            recording = Recording(within=first.unit if is_task else None, upstream=upstream)
        else:
            size, expected = action.stop - action.start, self.core.expected_items
            each = self.ledger.each_item(size, is_task, expected)
            alone = size == 1 and not leads
            if isinstance(action, Expand):
                alone = alone and not (action.inline or self.one_by_one)
            recording = self._as_unit(Recording(each=each, upstream=upstream), is_task, alone=alone)
        self.under_way.units[action.unit] = action, recording
        if is_task and isinstance(action, Expand):
            self.under_way.note_runs(action.unit, recording)
        return recording

    def _as_unit(self, recording: Recording, is_task: bool, *, alone: bool) -> Recording:
        """What Prefect sees of a unit that is a task run as a whole, if each of it is none."""
        if recording.each or not self.ledger.unit(is_task):
            return recording
        if is_task and alone:
            # As a unit it would stand beside the task run that it has of its own if it fails.
            return replace(recording, each=True)
        return replace(recording, unit=uuid4())

    def _part(self, action: Expand | Process, parent: SourceCall) -> Part:
        size = self.core.size_of(action.parent, action.offset)
        return Part(parent.label, action.offset, action.start, action.stop, size)

    def _items_apart(self, calls: Sequence[SourceCall]) -> bool:
        """Whether no item is worked on where it is found."""
        # Items that are task runs of their own take too long to be worked on in passing.
        single = self.stages[-1].task is not None and self.ledger.item_allowance > 0
        single = single or self.known.compares  # nobody there knows what else has been met
        return single or self.items_elsewhere or self.known.partly(calls)
