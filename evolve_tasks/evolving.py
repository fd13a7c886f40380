"""A run under way: between the core, which decides, and a strategy, which carries out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import length_hint
from typing import Any
from uuid import UUID, uuid4

from distributed import KilledWorker

from evolve_tasks.answers import Answer, Lost, failure_of, found_nested, found_of
from evolve_tasks.beside import Beside
from evolve_tasks.core.actions import Action, Expand, Extra, Found, Further, Process
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.budget import Bounded, FailFast, FailureBudget, Finish, Ignore
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.core.progress import Progress
from evolve_tasks.core.seen import KEY_BYTES, Seen, key_at, ranges
from evolve_tasks.core.suspects import MOST_DEATHS
from evolve_tasks.core.window import Window
from evolve_tasks.feeding import Arrival
from evolve_tasks.journal import items_token
from evolve_tasks.leads import Find, Lead, Leads, Share, between
from evolve_tasks.more import More
from evolve_tasks.naming import label_of, short_repr, source_label
from evolve_tasks.options import EvolveOptions, FailurePolicy
from evolve_tasks.outcome import Counts, Failure, StageCounts
from evolve_tasks.record_ledger import RecordLedger
from evolve_tasks.report import Story
from evolve_tasks.resuming import Recalled, Resuming
from evolve_tasks.stages import Stage
from evolve_tasks.streams import Streams
from evolve_tasks.telling import tell_batch, tell_expansion, tell_lost
from evolve_tasks.workers.calls import (
    BatchResult,
    CollectCall,
    Collected,
    CombineCall,
    Combined,
    Discovery,
    ExpandCall,
    GivenUp,
    Measure,
    NestedResult,
    Part,
    ProcessCall,
    Recorded,
    Recording,
    SourceCall,
    SourceEnd,
    Span,
    item_run_id,
)
from evolve_tasks.workers.glimpses import Glimpse
from evolve_tasks.workers.keys import keys_of
from evolve_tasks.workers.marks import marks_path, number_of, take_marks
from evolve_tasks.workers.streaming import Chunk
from evolve_tasks.workers.transport import NOTHING, Packed


class EvolvingRun:
    """What a run knows while it is under way.

    Args:
        run: unique name of the run.
        sources: the sources, taken when there is room for them.
        stages: the stages.
        options: the options.
        story: what is gathered for its report.
        events_per_minute: pace at which the API gets events of task runs.
        in_flight: items that may be in flight, as somebody says; `None` where nobody does.
        window_of: the window for such a number.
        resuming: its journal; `None` if it has none.
    """

    def __init__(
        self,
        run: str,
        sources: Iterable[Any],
        stages: tuple[Stage, ...],
        options: EvolveOptions,
        *,
        window_of: Callable[[int | None], Window],
        story: Story,
        events_per_minute: int,
        in_flight: int | None = None,
        resuming: Resuming | None = None,
    ) -> None:
        known = _known_length(sources)
        self.run = run
        self.stages = stages
        self.options = options
        self.core = Evolution(
            stages=len(stages),
            window=window_of(in_flight),
            buffered=options.limits.buffered,
            batch=options.batch_size,
            budget=failure_budget(options.on_failure),
            sources_known=known,
            max_items=options.limits.max_items,
            max_depth=options.limits.max_depth,
        )
        self.ledger = RecordLedger(options.record, options.record_budget, known, events_per_minute)
        self.story = story
        self.source_error: BaseException | None = None
        self.interrupted = False
        self.cancelled = False
        self.left = False
        self.in_flight = in_flight
        self._window_of = window_of
        self._wanted = in_flight, False  # and whether it is to pause
        self.unseen = False  # the API does not know the flow run any more
        self.wake: Callable[[], None] = lambda: None
        self.label: Callable[[Any], Any] | None = None
        self.on_source: Callable[[int, Any], None] | None = None
        self.on_expanded: Callable[[str, int], None] = lambda label, size: None
        self._marks: dict[str, set[tuple[int, int]] | None] = {}  # by address of a dead worker
        self._at_work: dict[int, list[int] | None] = {}  # what of a unit died at work
        self._unseen: Counter[tuple[int, int, int]] = Counter()  # lost, and not at work
        self.deaths = False  # of workers that had something of this run
        self.given_up: list[GivenUp] = []
        self.recorded: list[Recorded] = []
        self.sources: Iterator[Any] = iter(sources)
        self.resuming = resuming
        takes = options.resources or {}
        self._items_go_elsewhere = takes.get(stages[0].name) != takes.get(stages[-1].name)
        self._open: dict[int, tuple[Any, SourceCall]] = {}
        # What each unit expanded whose lists may be open.
        self._expanded: dict[int, tuple[SourceCall, ...]] = {}
        self._known: dict[int, tuple[int, Recalled]] = {}  # sources that a journal has in whole
        self._met: set[int] = set()  # sources that are equal to others
        self._under_way: dict[int, tuple[Expand | Process | Extra, Recording]] = {}
        self._glimpses: dict[int, Glimpse] = {}  # of nested sources, by position of the first
        self._unit_runs: dict[int, UUID] = {}  # task run of each unit that has open lists
        self._last = len(stages) - 1
        self._leads = Leads()
        self._further: dict[int, list[Further]] = {}  # what is to be told of units that ended
        self._shares: dict[tuple[int, int], Share] = {}  # and of the lists that they gave
        # What items are known by in a journal, by the unit that gave them and their list.
        self._keys: dict[int, dict[int, bytes]] = {}
        self.warn: Callable[..., None] = lambda message, *arguments: None
        self._seen = Seen(len(stages)) if options.unique else None
        self.beside = Beside(self.core, self.ledger)
        self.adapted: str | None = None  # how the strategy has changed on the way, and why
        self.streams = Streams()
        self.key: Callable[[Any], Any] | None = None

    # -- carrying out actions -----------------------------------------------------------------

    def arrived(self, arrival: Arrival) -> list[Action]:
        """Carry on with sources that a `Pull` has brought."""
        if not self.core.pulling:
            return []  # the run was stopped meanwhile, and did not wait for them
        for position, source in enumerate(arrival.sources, self.core.sources):
            known = None if self.resuming is None else self.resuming.arrived(position, source)
            if known is None and self._seen is not None and self._repeats(source):
                known = 0, []
                self._met.add(position)
            if known is not None:
                self._known[position] = known
            label = label_of(self.label, source, source_label(source))
            call = SourceCall(position, label, uuid4(), known=known is not None)
            self._open[position] = source, call
            if self.on_source is not None:
                self.on_source(position, source)
        self.source_error = arrival.error
        actions = self.core.sources_arrived(
            len(arrival.sources), ended=arrival.ended, awaited=arrival.awaited
        )
        if arrival.error is not None and self.options.on_failure == "fail_fast":
            actions += self.core.stop("the sources ended with an error (on_failure='fail_fast')")
        return actions + self.beside.go_on()

    @property
    def all_stages(self) -> tuple[Stage, ...]:
        """The stages, and what comes beside them."""
        return *self.stages, *self.beside.stages

    def adapt(self, how: str) -> None:
        """Note that the strategy has changed."""
        self.adapted = how

    def interrupt(self) -> None:
        """Leave the run before its end; may be called from any thread."""
        self.interrupted = True
        self.wake()

    def _partly_known(self, calls: Sequence[SourceCall]) -> bool:
        """Whether a journal may have some items of what is expanded, and not all."""
        resuming = self.resuming
        return resuming is not None and any(
            not call.known and resuming.knows(call.index) for call in calls
        )

    def abandon(self) -> None:
        """Begin nothing more: nobody waits for the rest."""
        self.left = True
        self._glimpses.clear()  # what they told of is dropped
        self.core.stop("the run was left before its end")

    def steer(self, in_flight: int | None) -> None:
        """Have so many items in flight from now on; may be called from any thread."""
        self._wanted = in_flight, self._wanted[1]
        self.wake()

    def pause(self, paused: bool) -> None:
        """Begin nothing more, or go on; may be called from any thread."""
        self._wanted = self._wanted[0], paused
        self.wake()

    def steered(self) -> list[Action]:
        """Do what was asked for since; called by who drives the run."""
        in_flight, paused = self._wanted
        actions: list[Action] = []
        if in_flight != self.in_flight:
            self.in_flight = in_flight
            actions += self.core.resize(self._window_of(in_flight))
        if paused != self.core.paused:
            actions += self.core.pause() if paused else self.core.resume()
        return actions

    def deleted(self) -> None:
        """Note that its flow run is gone from the API; may be called from any thread."""
        self.unseen = True

    def cancel(self) -> None:
        """Leave the run because its flow run was cancelled; may be called from any thread."""
        self.cancelled = True
        self.interrupt()

    def expand_call(self, action: Expand) -> ExpandCall | Lost | Measure:
        """What to send for an `Expand`.

        `Lost` if a source cannot travel, a `Measure` if there is nothing to do.
        """
        if action.parent >= 0:
            return self._inner_call(action)
        entries = [self._open[position] for position in range(action.start, action.stop)]
        self._expanded[action.unit] = tuple(call for _, call in entries)
        if all(call.known for _, call in entries):
            self._under_way[action.unit] = action, Recording()
            return Measure([SourceEnd() for _ in entries], NOTHING, 0.0, 0.0, False, Span())
        is_task = self.stages[action.stage].task is not None
        each = self.ledger.each_source(len(entries), is_task)
        unit = uuid4() if not each and self.ledger.unit(is_task) else None
        recording = Recording(each=each, unit=unit)
        self._under_way[action.unit] = action, recording
        try:
            items = Packed.of([None if call.known else source for source, call in entries])
        except Exception as error:
            kinds = ", ".join(sorted({type(source).__name__ for source, _ in entries}))
            return Lost(
                TypeError(
                    f"a source of type {kinds} cannot be pickled "
                    f"({type(error).__name__}: {error}), so it cannot be sent to a worker; give "
                    "a name or address instead and open it in the expanding stage"
                )
            )
        sources = self._expanded[action.unit]
        inline = 0 if self._items_apart(sources) else action.inline
        stream = self.streams.call(action.unit, action.stage, sources)
        return ExpandCall(
            action.stage, sources, items, inline, recording, action.crashes, stream=stream
        )

    def _items_apart(self, calls: Sequence[SourceCall]) -> bool:
        """Whether no item is worked on where it is found."""
        # Items that are task runs of their own take too long to be worked on in passing.
        single = self.stages[-1].task is not None and self.ledger.item_allowance > 0
        single = single or self._seen is not None  # nobody there knows what else has been met
        return single or self._items_go_elsewhere or self._partly_known(calls)

    def _inner_call(self, action: Expand) -> ExpandCall:
        """What to send for items that are expanded further; they stay where they are."""
        lead = self._leads.get(action.parent, action.offset)
        if lead is not None:
            parent, part = lead.above(action.start), None
            sources = lead.calls(action.start, action.stop)
            items = lead.packed(action.start, action.stop)
        else:
            parent = self._parent(action)
            sources = tuple(parent.item(item) for item in range(action.start, action.stop))
            part, items = self._part(action, parent), NOTHING
        self._expanded[action.unit] = sources
        recording = self._recording(action, parent)
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

    def _recording(self, action: Expand | Process, parent: SourceCall) -> Recording:
        """What Prefect sees of a unit of items."""
        is_task = self.stages[action.stage].task is not None
        each = self.ledger.each_item(action.stop - action.start, is_task, self.core.expected_items)
        recording = Recording(
            each=each,
            unit=uuid4() if not each and self.ledger.unit(is_task) else None,
            upstream=self._unit_runs.get(action.parent, parent.run_id),
        )
        self._under_way[action.unit] = action, recording
        return recording

    def _part(self, action: Expand | Process, parent: SourceCall) -> Part:
        size = self.core.size_of(action.parent, action.offset)
        return Part(parent.label, action.offset, action.start, action.stop, size)

    def process_call(self, action: Process) -> ProcessCall:
        """What to send for a `Process`."""
        parent = self._parent(action)
        recording = self._recording(action, parent)
        part = self._part(action, parent)
        lead = self._leads.get(action.parent, action.offset)
        items = None if lead is None else lead.packed(action.start, action.stop)
        return ProcessCall(action.stage, parent, part, recording, action.crashes, items)

    def belongs(self, unit: int, run_id: UUID) -> None:
        """Note that a unit is no task run of its own, but belongs to this one."""
        self._unit_runs[unit] = run_id

    def _source(self, call: SourceCall) -> Any:
        return self._open[call.position][0]

    def _parent(self, action: Expand | Process) -> SourceCall:
        """What gave the items of a unit."""
        lead = self._leads.get(action.parent, action.offset)
        if lead is not None and lead.owner is not None:
            return lead.owner
        return self._expanded[action.parent][action.offset]

    def _tell_expansion(self, action: Expand | Process, measure: Measure) -> None:
        calls = self._expanded[action.unit]
        for label, size in tell_expansion(self.story, action.stage, calls, measure):
            if action.parent < 0:
                self.on_expanded(label, size)

    def extra_call(self, action: Extra) -> CollectCall | CombineCall:
        """What to send for an `Extra`."""
        call = self.beside.call(action)
        self._under_way[action.unit] = action, call.recording
        return call

    def forget(self, unit: int, place: int) -> None:
        """Carry out a `Forget`."""
        self._leads.forget(unit, place)

    def released(self, unit: int) -> None:
        """Carry out a `Release`."""
        self._unit_runs.pop(unit, None)
        self._expanded.pop(unit, None)
        self._leads.release(unit)
        self._keys.pop(unit, None)

    def source_done(self, position: int) -> list[Action]:
        """Carry out a `SourceDone`."""
        actions: list[Action] = []
        if position in self._open:
            source, call = self._open.pop(position)
            self.story.source_done(position, call.label)
            self.streams.source_done(position)
            actions = self.beside.source_ended(position, source, call)
        self._known.pop(position, None)
        self._met.discard(position)
        if self.resuming is not None:
            self.resuming.source_done(position)
        return actions

    def keep(self) -> None:
        """Write what has ended to the journal; before it is reported."""
        if self.resuming is not None:
            self.resuming.flush()

    # -- what came of them --------------------------------------------------------------------

    def portions(self, unit: int, answer: Answer) -> list[Portion]:
        """What an answer adds to the outcome; asked before the core is told of it."""
        if isinstance(answer, Arrival | Chunk):
            return []
        action, recording = self._under_way[unit]
        if isinstance(action, Extra):
            return self._extra_portions(action, recording, answer)
        portions = self._portions(unit, action, recording, answer)
        self.beside.gather(portions)
        return portions

    def _extra_portions(self, action: Extra, recording: Recording, answer: Answer) -> list[Portion]:
        """What came of something beside the stages."""
        lost = None
        if isinstance(answer, Lost):
            if answer.crashed and not self.core.gives_up(action.unit):
                return []  # it runs again
            lost = failure_of(answer, self.beside.name_of(action), self.beside.index_of(action), "")
        portions, recorded = self.beside.answered(action, recording, answer, lost)
        self.recorded += recorded
        for portion in portions:
            for failure in portion.failures:
                self.story.failed(
                    failure.stage, failure.error_type, failure.item, failure.message, None
                )
        return portions

    def _portions(
        self, unit: int, action: Expand | Process, recording: Recording, answer: Answer
    ) -> list[Portion]:
        match answer:
            case BatchResult():
                parent = self._parent(action)
                self._note_batch(recording.unit, parent, action.start, action.stop, answer)
                tell_batch(self.story, parent, action.start, action.stop, answer)
                keys = self._keys.get(action.parent, {}).get(action.offset, b"")
                finds: list[Find] = []
                portions = self._portion(finds, 0, parent, action.start, action.stop, answer, keys)
                return portions + self._follow(finds, unit, 0)
            case Measure():
                self._tell_expansion(action, answer)
                finds = []
                portions = self._measured(finds, action, recording, answer)
                first = action.stop - action.start + self.streams.lists(unit)
                return portions + self._follow(finds, unit, first)
            case NestedResult():
                self._tell_expansion(action, answer.measure)
                finds = []
                portions = self._measured(finds, action, recording, answer.measure)
                for batch in answer.batches:
                    call = self._expanded[unit][batch.offset]
                    tell_batch(self.story, call, batch.start, batch.stop, batch.result)
                    self._note_batch(batch.run_id, call, batch.start, batch.stop, batch.result)
                    portions += self._portion(
                        finds, batch.offset, call, batch.start, batch.stop, batch.result
                    )
                return portions + self._follow(finds, unit, action.stop - action.start)
            case Lost():
                if answer.crashed:
                    running = self._at_work[unit] = self._running(action, answer)
                    if not self.core.gives_up(unit, running):
                        return []  # it runs again
                return self._lost(action, answer)
            case _:
                raise AssertionError(f"{action} was answered with {type(answer).__name__}")

    def tell(self, unit: int, answer: Answer) -> list[Action]:
        """Tell the core of an answer."""
        if isinstance(answer, Arrival):
            return self.arrived(answer)
        if isinstance(answer, Chunk):
            return self._gave(answer)
        action, recording = self._under_way.pop(unit)
        if isinstance(action, Extra):
            if isinstance(answer, Lost) and answer.crashed:
                self.deaths = True
                return self.core.crashed(unit)
            failed = isinstance(answer, Lost)
            if isinstance(answer, Collected | Combined):
                failed = answer.failure is not None
            return self.core.extra_ended(unit, failed=failed) + self.beside.go_on()
        if isinstance(action, Expand):
            self._glimpses.pop(action.start, None)
            self.streams.ended(unit)
        core, further = self.core, self._further.pop(unit, ())
        match answer:
            case BatchResult():
                return core.processed(
                    unit,
                    failed=len(answer.failures),
                    not_run=answer.not_run,
                    seconds=answer.worked_s,
                    further=further,
                )
            case NestedResult():
                self.ledger.give_back(
                    unit,
                    sum(len(batch.result.recorded) for batch in answer.batches),
                    sum(batch.result.unit_recorded for batch in answer.batches),
                    answer.unseen,
                )
                actions = core.expanded(
                    unit,
                    self._resumed(action, found_nested(answer)),
                    seconds=answer.measure.parse_s,
                    inline_s=answer.measure.inline_s
                    + sum(batch.result.worked_s for batch in answer.batches),
                    further=further,
                )
                self.ledger.foresee(core.expected_items)
                return actions
            case Measure():
                if answer.recorded and recording.unit is not None:
                    self._unit_runs[unit] = recording.unit
                return core.expanded(
                    unit,
                    self._resumed(action, [found_of(end) for end in answer.ends]),
                    seconds=answer.parse_s,
                    inline_s=answer.inline_s,
                    further=further,
                )
            case _:
                assert isinstance(answer, Lost), f"{action} was answered with {answer}"
                self.ledger.give_back(unit)
                if answer.crashed:
                    self.deaths = True
                    return core.crashed(unit, self._at_work.pop(unit))
                if isinstance(action, Process):
                    return core.processed(unit, failed=action.stop - action.start)
                return core.expansion_lost(unit)

    def _resumed(self, action: Expand | Process, found: list[Found]) -> list[Found]:
        """The same with what a journal has of it, and without what was met before."""
        for offset, call in enumerate(self._expanded[action.unit]):
            if call.known:
                size, _ = self._known.pop(call.position)
                met = call.position in self._met
                found[offset] = Found(size, size, resumed=size, known=not met)
            elif (share := self._shares.pop((action.unit, offset), None)) is not None:
                found[offset] = share.of(found[offset])
        return found

    def _gave(self, chunk: Chunk) -> list[Action]:
        """Take in items of a unit that is still in flight."""
        calls = self._expanded[chunk.unit]
        action, call = self._under_way[chunk.unit][0], calls[chunk.offset]
        assert isinstance(action, Expand), "nothing else gives on the way"
        items = Packed(chunk.payload).value()
        if known := self.streams.repeated(chunk):
            items, keys = items[known:], chunk.keys[known * KEY_BYTES :]
            chunk = chunk._replace(start=chunk.start + known, size=len(items), keys=keys)
            if not items:
                return []
        place = len(calls) + self.streams.took(chunk, call)
        self._leads.add(chunk.unit, [Lead(items, call, [], chunk.start)], place)
        found = Found(chunk.size, start=chunk.start)
        if self._seen is not None:
            fresh = self._seen.fresh(action.stage + 1, chunk.keys)
            met = chunk.size - len(fresh)
            left = ranges([chunk.start + position for position in fresh])
            found = found._replace(ended=met, repeated=met, left=left)
        return self.core.gave(chunk.unit, chunk.offset, found)

    def complete(self, answers: Iterable[tuple[int, Answer]]) -> list[tuple[int, Answer]]:
        """Those answers that can be told now: not before all that was sent on the way is here."""
        return self.streams.in_order(answers)

    def permits(self) -> list[tuple[int, int, int]]:
        """How far stages that give on the way may go now: unit, which of its items, number."""
        wanted = not self.core.closed
        free = self.options.limits.buffered - self.core.waiting
        return self.streams.permits(free if wanted else None)

    def _repeats(self, source: Any) -> bool:
        """Whether an equal source has come before; one that nobody can compare has not."""
        assert self._seen is not None, "it was asked for"
        try:
            keys = keys_of(self.key, [source])
        except Exception as error:
            self.warn(
                "unique=True cannot compare source %s with others (%s); it is worked on",
                short_repr(source),
                error,
            )
            return False
        return not self._seen.fresh(0, keys)

    def _take_over(
        self, finds: list[Find], action: Expand, offset: int, call: SourceCall, end: SourceEnd
    ) -> list[Portion]:
        """What of a list need not be begun: a journal has it, or it was met before."""
        if call.known:
            return self._recalled(finds, offset, 1, call, self._known[call.position][1])
        below = action.stage + 1
        sure = end.failure is None and not end.skipped
        journaled = self.resuming is not None and below == self._last and sure
        if not (journaled or self._seen is not None):
            return []
        share, recalled = self._share(journaled, below, call, end.size, end.keys, lambda: end.token)
        if end.ended and self._seen is None:
            return []  # it was worked on where it was found
        self._shares[action.unit, offset] = share
        if self._seen is not None and journaled:
            self._keys.setdefault(action.unit, {})[offset] = end.keys
        return self._recalled(finds, offset, 1, call, recalled)

    def _share(
        self,
        journaled: bool,
        stage: int,
        call: SourceCall,
        size: int,
        keys: bytes,
        token: Callable[[], str],
    ) -> tuple[Share, Recalled]:
        """What of the list that `call` gave is new, and what a journal has of that."""
        resuming = self.resuming if journaled else None
        if self._seen is None:
            recalled = []
            if resuming is not None:
                recalled = resuming.expanded(call.index, call.label, size, token())
            known = [(start, stop) for start, stop, _ in recalled]
            return Share(size, 0, tuple(between(known, size))), recalled
        fresh, recalled = self._seen.fresh(stage, keys), []
        if resuming is not None:
            for position in fresh:
                values = resuming.met(call.position, key_at(keys, position))
                if values:
                    recalled.append((position, position + 1, values))
        known_ones = {position for position, _, _ in recalled}
        left = ranges([position for position in fresh if position not in known_ones])
        return Share(size, size - len(fresh), left), recalled

    def _recalled(
        self, finds: list[Find], offset: int, levels: int, call: SourceCall, recalled: Recalled
    ) -> list[Portion]:
        """Results that a journal has; what they led to is among the finds again."""
        portions = []
        for start, stop, values in recalled:
            plain, leading = [], []
            for place, value in enumerate(values, start):
                if isinstance(value, More):
                    items = list(value.items)
                    keys = b"" if self._seen is None else keys_of(self.key, items)
                    owners = [(place, len(items))]
                    finds.append(Find(offset, call, levels, value.stage, owners, items, keys))
                    leading.append(place)
                    value = value.value
                plain.append(value)
            source = self._source(call)
            self.beside.known(call.index, start, plain, set(leading))
            portion = Portion(
                call.position, source, start, stop, plain, resumed=True, inner=call.inner
            )
            portions += portion.cut_after(leading)
        return portions

    def _follow(self, finds: list[Find], unit: int, first: int) -> list[Portion]:
        """Take in what items of a unit have found: its lists are those of the unit from `first`.

        Returns:
            What a journal has of it.
        """
        if not finds:
            return []
        leads: list[Lead] = []
        further: list[Further] = []
        portions: list[Portion] = []
        together: dict[tuple[int, int, int], Lead] = {}
        most = self.options.limits.max_depth
        action = self._under_way[unit][0]
        assert not isinstance(action, Extra), "its finds are nobody's items"
        apart = action.parent < 0  # their sources are different ones
        for find in finds:  # which grows
            seen = self._seen
            if most is not None and find.call.depth >= most:
                seen = None  # it may be met again where it is not too deep
            at = 0
            if find.stage < self._last:
                kind = find.offset if apart else 0, find.stage, find.levels
                lead = together.setdefault(kind, Lead([], None, []))
                new = range(len(find.items))
                fresh = set(new if seen is None else seen.fresh(find.stage, find.keys))
                for position, count in find.owners:
                    for number in range(count):
                        if at in fresh:
                            lead.items.append(find.items[at])
                            lead.places.append((find.call, position, number))
                        at += 1
                continue
            for position, count in find.owners:
                owner = find.call.item(position).deeper()
                items = find.items[at : at + count]
                keys = find.keys[at * KEY_BYTES : (at + count) * KEY_BYTES]
                at += count
                found = Found(count)
                if most is None or find.call.depth < most:
                    share, recalled = self._share(
                        self.resuming is not None,
                        self._last,
                        owner,
                        count,
                        keys,
                        partial(items_token, items),
                    )
                    found = share.of(found)
                    portions += self._recalled(finds, find.offset, find.levels + 1, owner, recalled)
                if self._seen is not None and self.resuming is not None:
                    self._keys.setdefault(unit, {})[first + len(leads)] = keys
                leads.append(Lead(items, owner, []))
                further.append(Further(self._last, found, find.offset, find.levels))
        for (offset, stage, levels), lead in together.items():
            if lead.items:
                leads.append(lead)
                further.append(Further(stage, Found(len(lead.items)), offset, levels))
        self._leads.add(unit, leads, first)
        self._further[unit] = further
        return portions

    def _noted(self, portion: Portion, mores: Mapping[int, More], keys: bytes = b"") -> Portion:
        """Give a portion after its results were noted for the journal."""
        if self.resuming is not None:
            own = len(portion.index) + 1
            failed = {
                failure.index[-1] for failure in portion.failures if len(failure.index) == own
            }
            values = iter(portion.values)
            done: list[Any] = []
            for place in range(portion.start, portion.stop + 1):
                if place < portion.stop and place not in failed:
                    value = next(values)
                    if place in mores:
                        value = replace(mores[place], value=value)
                    if keys:
                        self.resuming.done_once(portion.position, key_at(keys, place), value)
                    else:
                        done.append(value)
                elif done:
                    self.resuming.done(portion.index, place - len(done), done)
                    done = []
        return portion

    def _measured(
        self, finds: list[Find], action: Expand | Process, recording: Recording, measure: Measure
    ) -> list[Portion]:
        assert isinstance(action, Expand)
        if measure.recorded and recording.unit is not None:
            first, last = (
                self._expanded[action.unit][0].label,
                self._expanded[action.unit][-1].label,
            )
            label = first if action.stop - action.start == 1 else f"{first} … {last}"
            self.recorded.append(Recorded(recording.unit, action.stage, label))
        portions = []
        values = measure.values.value() or [[]] * len(measure.ends)
        calls = self._expanded[action.unit]
        for offset, (call, end, worked_out) in enumerate(
            zip(calls, measure.ends, values, strict=True)
        ):
            source = self._source(call)
            if not end.skipped:
                self.beside.expanded(call.position)
            self.beside.parts(call.index, end.parts)
            portions += self._take_over(finds, action, offset, call, end)
            if call.known:
                continue
            if end.has_run:
                error = None if end.failure is None else str(end.failure)
                self.recorded.append(Recorded(call.run_id, action.stage, call.label, error))
            self._note_items(call, end.recorded, end.failures)
            failures = end.failures if end.failure is None else [end.failure, *end.failures]
            if failures or end.ended:
                portion = Portion(
                    call.position,
                    source,
                    0,
                    end.ended - end.not_run,
                    worked_out,
                    [replace(failure, source=source) for failure in failures],
                    inner=call.inner,
                )
                mores = self._found(finds, offset, call, end.discoveries)
                if len(worked_out) < end.ended - end.not_run - len(end.failures):
                    portions.append(portion)  # results are combined where they are
                else:
                    portions += self._noted(portion, mores).cut_after(mores)
        return portions

    def _found(
        self, finds: list[Find], offset: int, call: SourceCall, discoveries: Sequence[Discovery]
    ) -> dict[int, More]:
        """Note what items of a list have found; give it by position, without their results."""
        mores: dict[int, More] = {}
        for one in discoveries:
            items, at = one.items.value(), 0
            finds.append(Find(offset, call, 1, one.stage, one.owners, items, one.keys))
            for position, count in one.owners:
                mores[position] = More(None, items[at : at + count], one.stage)
                at += count
        return mores

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

    def _portion(
        self,
        finds: list[Find],
        offset: int,
        call: SourceCall,
        start: int,
        stop: int,
        batch: BatchResult,
        keys: bytes = b"",
    ) -> list[Portion]:
        source = self._source(call)
        self._note_items(call, batch.recorded, batch.failures)
        failures = [replace(failure, source=source) for failure in batch.failures]
        values, stop = batch.values.value(), stop - batch.not_run
        mores = self._found(finds, offset, call, batch.discoveries)
        self.beside.parts(call.index, batch.parts)
        portion = Portion(call.position, source, start, stop, values, failures, inner=call.inner)
        if len(values) + len(failures) < stop - start:
            return [portion]  # results are combined where they are
        return self._noted(portion, mores, keys).cut_after(mores)

    def _running(self, action: Expand | Process, lost: Lost) -> list[int] | None:
        """What of a unit its worker was at when it died; `None` if nobody knows."""
        if not isinstance(lost.error, KilledWorker):
            return None
        address = lost.error.last_worker.address
        if address not in self._marks:
            self._marks[address] = take_marks(marks_path(self.run, address))
        marks = self._marks[address]
        if not marks:
            return None
        positions = range(action.start, action.stop)
        if isinstance(action, Process):
            number = number_of(self._parent(action).index)
            running = {item for source, item in marks if source == number} & set(positions)
        else:
            # A source is at work also while its items are, in passing or by a nested unit.
            at_work = {source for source, _ in marks}
            calls = zip(positions, self._expanded[action.unit], strict=True)
            running = {position for position, call in calls if number_of(call.index) in at_work}
        if not running:
            # It may have killed the worker all the same, where nobody looks: on its way there.
            place = action.parent, action.offset, action.start
            self._unseen[place] += 1
            if self._unseen[place] >= MOST_DEATHS:
                return None
        return sorted(running)

    def _lost(self, action: Expand | Process, lost: Lost) -> list[Portion]:
        """Failures of a unit that Dask gave up, or that took down all the workers that it may."""
        stage = self.stages[action.stage].name
        if isinstance(action, Process):
            call = self._parent(action)
            source = self._source(call)
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
                upstream = self._unit_runs.get(action.parent, call.run_id)
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
        for call in self._expanded[action.unit]:
            source = self._source(call)
            given = None if call.inner else source
            failure = replace(failure_of(lost, stage, call.index, given), source=source)
            if call.inner:
                failure = replace(failure, item=f"item {call.label}")
            recorded = lost.crashed and self.stages[action.stage].task is not None
            tell_lost(self.story, call, failure, call.run_id if recorded else None)
            if recorded:
                above = self._unit_runs.get(action.parent)
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

    def glimpsed(self, glimpse: Glimpse) -> None:
        """Note how far nested sources are; may be called from any thread."""
        if glimpse.position in self._open:
            self._glimpses[glimpse.position] = glimpse

    @property
    def progress(self) -> Progress:
        """How far it is, nested sources included; may be asked for by any thread."""
        progress = self.core.progress
        if progress.finished or not self._glimpses:
            return progress
        glimpses = list(self._glimpses.values())
        discovered = sum(glimpse.discovered for glimpse in glimpses)
        return replace(
            progress,
            discovered=progress.discovered + discovered,
            done=progress.done + sum(glimpse.done for glimpse in glimpses),
            failed=progress.failed + sum(glimpse.failed for glimpse in glimpses),
            unseen=max(0, progress.unseen - discovered),
        )

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
            sources_failed=self.core.roots.failed,
            discovered=last.discovered,
            done=last.done,
            failed=last.failed,
            resumed=last.resumed,
            not_run=last.not_run,
            repeated=0 if self._seen is None else sum(self._seen.repeated),
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


def _known_length(sources: Iterable[Any]) -> int | None:
    """How many sources there are, where that can be told without taking one."""
    try:
        length = length_hint(sources, -1)
    except Exception:  # an object of the user's, with a __len__ that does not work
        return None
    return length if length >= 0 else None
