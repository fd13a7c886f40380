"""A run under way: between the core, which decides, and a strategy, which carries out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from operator import length_hint
from typing import Any
from uuid import UUID, uuid4

from evolve_tasks.answers import Answer, Lost, found_nested, found_of
from evolve_tasks.async_sources import FromLoop
from evolve_tasks.beside import Beside
from evolve_tasks.collecting import Collecting
from evolve_tasks.core.actions import Action, Expand, Extra, Follow, Found, ItemDone, Process
from evolve_tasks.core.assembly import Portion
from evolve_tasks.core.budget import Bounded, FailFast, FailureBudget, Finish, Ignore
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.core.progress import Progress
from evolve_tasks.core.seen import KEY_BYTES, Seen, ranges
from evolve_tasks.core.window import Window
from evolve_tasks.feeding import Arrival
from evolve_tasks.following import Following
from evolve_tasks.known_before import KnownBefore
from evolve_tasks.leads import Lead
from evolve_tasks.losses import Losses
from evolve_tasks.naming import label_of, source_label
from evolve_tasks.options import EvolveOptions, FailurePolicy
from evolve_tasks.outcome import Counts, StageCounts
from evolve_tasks.record_ledger import RecordLedger
from evolve_tasks.reducing import Reducing
from evolve_tasks.report import Story
from evolve_tasks.resuming import Resuming
from evolve_tasks.sending import Sending
from evolve_tasks.stages import Stage
from evolve_tasks.streams import Streams
from evolve_tasks.taking import Taking
from evolve_tasks.under_way import UnderWay
from evolve_tasks.workers.calls import (
    BatchResult,
    CollectCall,
    Collected,
    CombineCall,
    Combined,
    Measure,
    NestedResult,
    Recorded,
    Recording,
    SourceCall,
)
from evolve_tasks.workers.glimpses import Glimpse
from evolve_tasks.workers.streaming import Chunk


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
        streams: its units that may give on the way.
        collecting: what is called with each source that has ended; `None` for nothing.
        reducing: what combines results; `None` for nothing.
        label: the user's function that names a source; `None` for the usual names.
        key: the user's function that says what makes two items the same; `None` for none.
        iterates: a loop takes each result as it comes.
        one_by_one: one thing is done after the other.
        logger: is told what nobody would see otherwise.
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
        in_flight: int | None,
        resuming: Resuming | None,
        streams: Streams,
        collecting: Collecting | None,
        reducing: Reducing | None,
        label: Callable[[Any], Any] | None,
        key: Callable[[Any], Any] | None,
        iterates: bool,
        one_by_one: bool,
        logger: logging.Logger | Any,
    ) -> None:
        known, last = _known_length(sources), len(stages) - 1
        told_of = () if collecting is None else collecting.inner
        self.run = run
        self.stages = stages
        self.options = options
        self.iterates = iterates
        self.core = Evolution(
            stages=len(stages),
            window=window_of(in_flight),
            buffered=options.limits.buffered,
            batch=options.batch_size,
            budget=failure_budget(options.on_failure),
            sources_known=known,
            max_items=options.limits.max_items,
            max_depth=options.limits.max_depth,
            leads_on=options.unique or options.limits.max_items is not None,
            told_of=told_of,
            streaming=streams.stages,
        )
        each = sum(stage.task is not None for stage in (stages[0], stages[-1]))
        self.ledger = RecordLedger(
            options.record, options.record_budget, known, each, events_per_minute
        )
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
        self._label = label
        self._logger = logger
        self.on_source: Callable[[int, Any], None] | None = None
        self.deaths = False  # of workers that had something of this run
        self.recorded: list[Recorded] = []
        self.sources: Iterator[Any] = iter(sources)
        self.resuming = resuming
        self.streams = streams
        self.adapted: str | None = None  # how the strategy has changed on the way, and why
        self._glimpses: dict[int, Glimpse] = {}  # of nested sources, by position of the first
        self.under_way = UnderWay()
        self.losses = Losses(run, stages, self.ledger, story, self.under_way)
        self.beside = Beside(
            self.core, self.ledger, story, collecting, reducing, resuming, self.losses.give_up
        )
        seen = Seen(len(stages)) if options.unique else None
        self.known = KnownBefore(last, seen, key, resuming, self.under_way, self.beside, logger)
        takes = options.resources or {}
        self.sending = Sending(
            self.core,
            stages,
            self.ledger,
            self.under_way,
            self.known,
            streams,
            self.beside,
            items_elsewhere=takes.get(stages[-2].name) != takes.get(stages[-1].name),
            fail_fast=options.on_failure == "fail_fast",
            one_by_one=one_by_one,
        )
        self.taking = Taking(
            self.core,
            stages,
            story,
            self.under_way,
            self.known,
            Following(self.known, self.under_way, options.limits.max_depth, told_of),
            self.losses,
            self.beside,
            streams,
            self.recorded,
            logger,
        )

    def arrived(self, arrival: Arrival) -> list[Action]:
        """Carry on with sources that a `Pull` has brought."""
        if not self.core.pulling:
            return []  # the run was stopped meanwhile, and did not wait for them
        for position, source in enumerate(arrival.sources, self.core.sources):
            label = label_of(self._label, source, source_label(source))
            known = self.known.source_arrived(position, source, label)
            call = SourceCall(position, label, uuid4(), known=known)
            self.under_way.sources[position] = source, call
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
        if isinstance(self.sources, FromLoop):
            self.sources.leave()
        self.wake()

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

    # -- carrying out actions -------------------------------------------------------------------

    def extra_call(self, action: Extra) -> CollectCall | CombineCall | Lost:
        """What to send for an `Extra`; `Lost` if it cannot travel."""
        call = self.beside.call(action)
        if isinstance(call, Lost):
            self.under_way.units[action.unit] = action, Recording()
            return call
        self.under_way.units[action.unit] = action, call.recording
        return call

    def follow(self, action: Follow) -> None:
        """Carry out a `Follow`; its answer is `FOLLOWED`."""
        self.under_way.units[action.unit] = action, Recording()

    def belongs(self, unit: int, run_id: UUID) -> None:
        """Note that a unit is no task run of its own, but belongs to this one."""
        self.under_way.unit_runs[unit] = run_id

    def forget(self, unit: int, place: int) -> None:
        """Carry out a `Forget`."""
        self.under_way.leads.forget(unit, place)

    def released(self, unit: int) -> None:
        """Carry out a `Release`."""
        self.under_way.released(unit)
        self.known.released(unit)

    def item_done(self, done: ItemDone) -> list[Action]:
        """Carry out an `ItemDone`."""
        return self.beside.item_ended(done, self.under_way.source)

    def source_done(self, position: int) -> list[Action]:
        """Carry out a `SourceDone`."""
        actions: list[Action] = []
        if position in self.under_way.sources:
            source, call = self.under_way.sources.pop(position)
            self.story.source_done(position, call.label)
            self.streams.source_done(position)
            actions = self.beside.source_ended(position, source, call)
        self.known.source_done(position)
        return actions

    def keep(self) -> None:
        """Write what has ended to the journal; before it is reported."""
        if self.resuming is not None:
            self.resuming.flush()

    # -- what came of them ----------------------------------------------------------------------

    def portions(self, unit: int, answer: Answer) -> list[Portion]:
        """What an answer adds to the outcome; asked before the core is told of it."""
        return self.taking.portions(unit, answer)

    def tell(self, unit: int, answer: Answer) -> list[Action]:
        """Tell the core of an answer."""
        if isinstance(answer, Arrival):
            return self.arrived(answer)
        if isinstance(answer, Chunk):
            return self._gave(answer)
        action, _ = self.under_way.units.pop(unit)
        if isinstance(action, Extra):
            if isinstance(answer, Lost) and answer.crashed:
                self.deaths = True
                return self.core.crashed(unit) + self.beside.go_on()
            failed = isinstance(answer, Lost)
            if isinstance(answer, Collected | Combined):
                failed = answer.failure is not None
            return self.core.extra_ended(unit, failed=failed) + self.beside.go_on()
        if isinstance(action, Expand):
            self._glimpses.pop(action.start, None)
            self.streams.ended(unit, again=isinstance(answer, Lost) and answer.crashed)
        core, further = self.core, self.taking.following.of(unit)
        if isinstance(action, Follow):
            return core.followed(unit, further)
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
                    self.known.resumed(action, found_nested(answer)),
                    seconds=answer.measure.parse_s,
                    inline_s=answer.measure.inline_s
                    + sum(batch.result.worked_s for batch in answer.batches),
                    further=further,
                )
                if self.stages[-1].task is not None:
                    self.ledger.foresee(core.expected_items)
                return actions
            case Measure():
                return core.expanded(
                    unit,
                    self.known.resumed(action, [found_of(end) for end in answer.ends]),
                    seconds=answer.parse_s,
                    inline_s=answer.inline_s,
                    further=further,
                )
            case _:
                assert isinstance(answer, Lost), f"{action} was answered with {answer}"
                self.ledger.give_back(unit)
                if answer.crashed:
                    self.deaths = True
                    at_work = self.taking.at_work(unit)
                    self._logger.debug("%s died with its worker; at work: %s", action, at_work)
                    return core.crashed(unit, at_work)
                if isinstance(action, Process):
                    return core.processed(unit, failed=action.stop - action.start)
                return core.expansion_lost(unit)

    def _gave(self, chunk: Chunk) -> list[Action]:
        """Take in items of a unit that is still in flight."""
        calls = self.under_way.calls[chunk.unit]
        action, call = self.under_way.units[chunk.unit][0], calls[chunk.offset]
        assert isinstance(action, Expand), "nothing else gives on the way"
        # `taking` made failures of what cannot be read here.
        items = chunk.items or [None] * chunk.size
        if known := self.streams.repeated(chunk):
            items, keys = items[known:], chunk.keys[known * KEY_BYTES :]
            chunk = chunk._replace(start=chunk.start + known, size=len(items), keys=keys)
            if not items:
                return []
        place = len(calls) + self.streams.took(chunk, call)
        found = Found(chunk.size, start=chunk.start)
        if chunk.unreadable:
            found = found._replace(ended=chunk.size, failed=chunk.size)
        elif self.known.seen is not None:
            fresh = self.known.seen.fresh(action.stage + 1, chunk.keys)
            met = chunk.size - len(fresh)
            left = ranges([chunk.start + position for position in fresh])
            found = found._replace(ended=met, repeated=met, left=left)
        if found.ended < found.size:
            run = self.under_way.run_of(chunk.unit, call)
            lead = Lead(items, call, [], chunk.start, run)
            self.under_way.leads.add(chunk.unit, [lead], place)
        return self.core.gave(chunk.unit, chunk.offset, found)

    def complete(self, answers: Iterable[tuple[int, Answer]]) -> list[tuple[int, Answer]]:
        """Those answers that can be told now: not before all that was sent on the way is here."""
        return self.streams.in_order(
            (unit, self.sending.completed(unit, answer)) for unit, answer in answers
        )

    def permits(self) -> list[tuple[int, int, int]]:
        """How far stages that give on the way may go now: unit, which of its items, number."""
        core, buffered = self.core, self.options.limits.buffered
        return self.streams.permits(None if core.closed else core.waiting_behind, buffered)

    def glimpsed(self, glimpse: Glimpse) -> None:
        """Note how far nested sources are; may be called from any thread."""
        if glimpse.position in self.under_way.sources:
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
                tally.discovered,
                tally.done,
                tally.failed,
                tally.resumed,
                # What was in flight when the run was left has come to nothing, too.
                tally.discovered - tally.done - tally.failed - tally.resumed
                if self.left
                else tally.not_run,
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
            repeated=self.known.repeated,
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
