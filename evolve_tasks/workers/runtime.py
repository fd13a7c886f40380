"""Run expansions and batches where they are sent to, with the flow's context around them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, ParamSpec, TypeVar
from uuid import UUID, uuid4

from distributed import get_worker

from evolve_tasks.journal import items_token
from evolve_tasks.naming import label_of
from evolve_tasks.outcome import Failure
from evolve_tasks.stages import Stage
from evolve_tasks.workers.bound import BoundStage, Ran, UnitContext, contexts
from evolve_tasks.workers.calls import (
    BatchResult,
    CollectCall,
    Collected,
    CombineCall,
    Combined,
    ExpandCall,
    Expansion,
    Measure,
    Parts,
    ProcessCall,
    Recording,
    RunSpec,
    SourceCall,
    SourceEnd,
    Span,
    item_run_id,
)
from evolve_tasks.workers.combining import combining, part_of, parts_of
from evolve_tasks.workers.context import tracking_alone
from evolve_tasks.workers.engines import keeps_results, record_failure
from evolve_tasks.workers.failing import after_some, failure_from
from evolve_tasks.workers.gathering import streamed
from evolve_tasks.workers.keys import keys_of
from evolve_tasks.workers.marks import PACKING, SOURCE_ITSELF, Marks, number_of, packing
from evolve_tasks.workers.prints import prints_heard
from evolve_tasks.workers.results import Results, packed, refuse_unpicklable
from evolve_tasks.workers.salvaging import Unreadable
from evolve_tasks.workers.streaming import Flusher, Line, Stream
from evolve_tasks.workers.task_runs import new_task_run
from evolve_tasks.workers.timed import TimedThreads
from evolve_tasks.workers.transport import (
    NOTHING,
    Packed,
)
from evolve_tasks.workers.unit_runs import OpenRun, run_as_unit

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class _Expanded:
    """How one source ended; `ran` is `None` if it was not begun."""

    item: Any
    ran: Ran | None = None
    parse_s: float = 0.0
    worked_on: list[Ran] | None = None
    inline_s: float = 0.0
    given: int = 0  # items that were sent on the way
    cut: bool = False  # and then the run was stopped
    token: str = ""  # of what it gave, where there is a journal


class _WorkedOn(NamedTuple):
    """Items that were worked on where they were found, and what they gave."""

    source: SourceCall
    end: SourceEnd  # of the source
    items: Any
    results: Results


class Runtime:
    """The user's stages, ready to run, in one worker process (or in the flow's own).

    Args:
        spec: the run.
        template: the context variables of the flow run. Each unit runs in a copy of it, so
            that nothing is entered in one task and left in another.
        stopped: whether the run has been stopped, asked before each item.
        place: name of the worker, for the record of where things ran.
        signals: exceptions that are not caught.
        marks: where threads note what they are at; `None` where nobody would read it.
        gone: whether the run is over, and nobody hears of what is still done.
    """

    def __init__(
        self,
        spec: RunSpec,
        template: Context,
        stopped: Callable[[], bool],
        place: str,
        signals: tuple[type[BaseException], ...] = (),
        marks: Marks | None = None,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.spec = spec
        self._gone = gone
        self._marks = marks
        self.stopped = stopped
        self._keys_of = partial(keys_of, spec.key) if spec.unique else None
        self._template = template
        self._place = place
        # Whether a task can be called alone depends on the flow run's context.
        self._threads = TimedThreads()
        self._flusher = Flusher()
        self._stack = ExitStack()
        self._stack.enter_context(prints_heard())
        self._bound = template.copy().run(
            lambda: [
                BoundStage(stage, signals, self._threads, spec.most_items, free_tags=spec.free_tags)
                for stage in spec.stages
            ]
        )
        self._collects = {of: self._beside(stage, signals) for of, stage in spec.collect.items()}
        self._reduces = None if spec.reduce is None else self._beside(spec.reduce, signals)

    def _beside(self, stage: Stage, signals: tuple[type[BaseException], ...]) -> BoundStage:
        """What is called beside the stages, with several arguments."""
        return self._template.copy().run(
            partial(
                BoundStage,
                stage,
                signals,
                self._threads,
                spread=True,
                free_tags=self.spec.free_tags,
            )
        )

    def expand(self, call: ExpandCall, items: Sequence[Any]) -> Expansion:
        """Run an expanding stage on each of some sources, or of some items."""
        self._mark(call.sources[0], SOURCE_ITSELF)
        return self._in_context(self._expand, call, items)

    def process(self, call: ProcessCall, items: Sequence[Any]) -> BatchResult:
        """Run the last stage on each of some items."""
        self._mark(call.source, call.part.start)
        return self._in_context(self._process, call, items)

    def process_together(
        self, given: Sequence[tuple[ProcessCall, Sequence[Any]]]
    ) -> list[BatchResult]:
        """Run the last stage on the items of several units, one after the other."""
        return self._in_context(self._process_together, given)

    def extra(self, call: CollectCall | CombineCall) -> Collected | Combined:
        """Do what was asked for beside the stages."""
        return self.collect(call) if isinstance(call, CollectCall) else self.combine(call)

    def collect(self, call: CollectCall) -> Collected:
        """Call what collects the results of a source."""
        return self._in_context(self._collect, call)

    def combine(self, call: CombineCall) -> Combined:
        """Combine parts that units came to."""
        return self._in_context(self._combine, call)

    def open_run(self, stage: int, label: str) -> OpenRun:
        """Begin a task run that units may belong to, under the name of a stage's task."""
        task = self._bound[stage].task
        assert task is not None, "a stage that is no task has no task runs"
        name, context = self.spec.stages[stage].name, self._template.copy()
        return OpenRun(task, name, label, context, self.spec.free_tags)

    def close(self) -> None:
        """End the threads that it keeps for tasks with a time limit."""
        self._flusher.close()
        self._threads.close()
        self._stack.close()

    def _in_context(self, function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            run = partial(_tracked_alone, function, *arguments, **keywords)
            return self._template.copy().run(run)
        finally:
            if self._marks is not None:
                self._marks.clear()

    def _mark(self, source: SourceCall, item: int) -> None:
        """Note what this thread is at, for those who ask when the worker is dead."""
        if self._marks is not None:
            self._marks.at(number_of(source.index), item)

    def _expand(self, call: ExpandCall, given: Sequence[Any]) -> Expansion:
        bound = self._bound[call.stage]
        span = self._begin()
        name = self._unit_name(bound.stage, call, given)
        ended = self._as_unit(bound, call.recording, name, self._each)(call, given)
        span.ended = time.time()
        ends: list[SourceEnd] = []
        lists: list[Any] = []
        inline: list[_WorkedOn | None] = []
        for source, one in zip(call.sources, ended, strict=True):
            end = SourceEnd(skipped=one.ran is None or one.cut, given=one.given)
            items: Any = ()
            if one.ran is not None:
                self._compare(end, one.ran)
                end.has_run = bound.task is not None and call.recording.each
                if one.ran.error is None:
                    end.size, items = len(one.ran.value), one.ran.value
                    end.token = one.token
                else:
                    end.failure = self._failed(bound, source.index, one.item, one.ran)
                    items = one.ran.value or ()
                    end.size = len(items)
                    if end.given + end.size:
                        end.failure = after_some(end.failure, end.given + end.size)
                    if self._to_be_told(bound, call.recording, one.ran):
                        upstream = call.recording.upstream
                        label = self._label_of(source, one.item)
                        self._record_failure(
                            bound, source.run_id, label, upstream, one.item, one.ran
                        )
                        end.has_run = True
            if one.worked_on is None:
                inline.append(None)
            else:
                inline.append(_WorkedOn(source, end, items, self._results(one.worked_on, 0)))
                end.ended = len(items)
                end.not_run = len(items) - len(one.worked_on)
                items = ()
            ends.append(end)
            lists.append(items)
        measure = Measure(
            ends,
            self._inline_values(call, inline),
            parse_s=sum(one.parse_s for one in ended),
            inline_s=sum(one.inline_s for one in ended),
            recorded=call.recording.unit is not None and bound.task is not None,
            span=span,
            items=Packed.of(list(given)) if self._collects_inner(call) else None,
        )
        return Expansion(lists, measure)

    def _collects_inner(self, call: ExpandCall) -> bool:
        """Whether the flow has to know the inner items that are expanded."""
        return bool(call.sources[0].inner) and call.stage > 0 and call.stage in self._collects

    def _compare(self, end: SourceEnd, ran: Ran) -> None:
        """Note what stands for each item that was found, where they are compared."""
        if self._keys_of is None or not ran.value:
            return
        try:
            end.keys = self._keys_of(ran.value)
        except Exception as error:
            ran.value, ran.error = None, ran.error or error

    def _results(self, ended: list[Ran], start: int) -> Results:
        return Results(self.spec.stages[-1].name, ended, start, self._keys_of)

    def _each(self, call: ExpandCall, given: Sequence[Any]) -> list[_Expanded]:
        """Expand each source, and work on short lists at once."""
        bound = self._bound[call.stage]
        here = self._bound[call.stage + 1] if call.inline else None
        around = contexts(bound, call.recording)
        around_here = None if here is None else contexts(here, _in_passing(call))
        ended: list[_Expanded] = []
        failed = False
        for offset, (source, item) in enumerate(zip(call.sources, given, strict=True)):
            if failed or source.known or self.stopped():
                ended.append(_Expanded(item))
                continue
            name = f"{bound.stage.name}[{self._label_of(source, item)}]"
            one = _Expanded(item)
            ended.append(one)
            begun = time.perf_counter()
            self._mark(source, SOURCE_ITSELF)
            with (
                around(source.run_id, name) as unit,
                self._streamed(bound, call, offset) as stream,
            ):
                one.ran = ran = unit.run(item, source.run_id, name)
            if stream is not None and stream.streams:
                one.given, one.cut = stream.given, stream.cut
                ran.value, ran.error = [], ran.error or stream.failed
            one.parse_s = time.perf_counter() - begun
            if self.spec.journaled and ran.error is None:
                # Before they are worked on here: whoever does that may change them.
                one.token = items_token(ran.value)
            if ran.error is not None:
                failed = self.spec.fail_fast
            elif here is not None and around_here is not None and 0 < len(ran.value) <= call.inline:
                begun = time.perf_counter()
                with around_here(source.run_id, name) as unit:
                    one.worked_on = self._work_on(here, unit, source, ran.value, 0)
                one.inline_s = time.perf_counter() - begun
                failed = self.spec.fail_fast and any(
                    ended.error is not None for ended in one.worked_on
                )
        # From here on the last one is as good as any other: what they gave is compared, and what
        # was worked on here is pickled.
        self._mark(call.sources[0], PACKING)
        return ended

    @contextmanager
    def _streamed(
        self, bound: BoundStage, call: ExpandCall, offset: int
    ) -> Iterator[Stream | None]:
        """Send what one of a unit's items gives while it still gives, if that was asked for."""
        # What Prefect keeps as the result of a task has to be all of it.
        if call.stream is None or (bound.task is not None and keeps_results(bound.task)):
            with streamed(None):  # nor is what a run within this one gathers part of another
                yield None
            return
        # As get_client() does, which other threads cannot call.
        line = Line(self.spec.run, call.stream.unit, get_worker()._get_client)
        name = self.spec.stages[call.stage].name
        stream = Stream(name, call.stream, offset, line, self._keys_of, self.stopped, self._gone)
        self._flusher.add(stream)
        try:
            with streamed(stream):
                yield stream
        finally:
            self._flusher.remove(stream)
            stream.settle()

    def _inline_values(self, call: ExpandCall, inline: Sequence[_WorkedOn | None]) -> Packed:
        worked_on = [one for one in inline if one is not None]
        if not worked_on:
            return NOTHING
        recording = _in_passing(call)
        here = self._bound[call.stage + 1]
        # Before they are combined: whoever does that may change its first argument.
        values = packed(
            [one.results for one in worked_on],
            lambda: [[] if one is None else self._values(one.results.ended) for one in inline],
        )
        gave_runs = self._bound[call.stage].task is not None
        upstream = (call.recording.unit or call.recording.within) if gave_runs else None
        for source, end, items, results in worked_on:
            end.discoveries = results.discoveries
            end.failures, end.recorded = self._failures(
                here,
                recording,
                source,
                upstream or (source.run_id if end.has_run else None),
                results.ended,
                items,
                0,
            )
        for source, end, _, results in worked_on:
            end.parts = self._parts(source, results, 0, upstream)
        return values

    def _process(self, call: ProcessCall, items: Sequence[Any]) -> BatchResult:
        bound, span = self._bound[call.stage], self._begin()
        name = f"{bound.stage.name}[{self._batch_label(call, items)}]"
        ended, worked_s = self._as_unit(bound, call.recording, name, self._batch)(call, items)
        span.ended = time.time()
        return self._batch_result(call, items, ended, worked_s, span)

    def _batch_label(self, call: ProcessCall, items: Sequence[Any]) -> str:
        if len(items) == 1:
            return self._label(call.source, call.part.start, items[0])
        return f"{call.label}-{call.part.stop - 1}"

    def _batch(self, call: ProcessCall, items: Sequence[Any]) -> tuple[list[Ran], float]:
        bound, recording = self._bound[call.stage], call.recording
        log_run_id = recording.unit or recording.upstream or call.source.run_id
        name = f"{bound.stage.name}[{self._batch_label(call, items)}]"
        with UnitContext(bound, recording, log_run_id, name) as unit:
            begun = time.perf_counter()
            ended = self._work_on(bound, unit, call.source, items, call.part.start)
            return ended, time.perf_counter() - begun

    def _batch_result(
        self,
        call: ProcessCall,
        items: Sequence[Any],
        ended: list[Ran],
        worked_s: float,
        span: Span,
    ) -> BatchResult:
        bound, start = self._bound[call.stage], call.part.start
        # A result may kill the process when it is pickled, and it need not be the last.
        self._mark(call.source, packing(start))
        results = self._results(ended, start)
        values = packed([results], lambda: self._values(ended))
        failures, recorded = self._failures(
            bound,
            call.recording,
            call.source,
            call.recording.upstream,
            ended,
            items,
            start,
        )
        return BatchResult(
            values,
            failures,
            len(items) - len(ended),
            recorded,
            call.recording.unit is not None and bound.task is not None,
            worked_s,
            span,
            results.discoveries,
            self._parts(call.source, results, start, call.recording.unit or call.recording.within),
        )

    def _process_together(
        self, given: Sequence[tuple[ProcessCall, Sequence[Any]]]
    ) -> list[BatchResult]:
        (first, _), (last, _) = given[0], given[-1]
        bound, run_id = self._bound[first.stage], first.recording.unit

        def body() -> list[tuple[list[Ran], float, Span]]:
            ran: list[tuple[list[Ran], float, Span]] = []
            failed = False
            for call, items in given:
                span, ended, worked_s = self._begin(), list[Ran](), 0.0
                if not failed:
                    ended, worked_s = self._batch(_within(call, run_id), items)
                span.ended = time.time()
                failed = failed or (
                    self.spec.fail_fast and any(one.error is not None for one in ended)
                )
                ran.append((ended, worked_s, span))
            return ran

        name = f"{bound.stage.name}[{first.label} … {last.label}]"
        ran = self._as_unit(bound, first.recording, name, body)()
        return [
            self._batch_result(call, items, *one)
            for (call, items), one in zip(given, ran, strict=True)
        ]

    def _collect(self, call: CollectCall) -> Collected:
        bound = self._collects[call.stage]
        source, given = call.source, call.given.value()
        name = f"{bound.stage.name}[{source.label}]"
        span = self._begin()
        with UnitContext(bound, call.recording, source.run_id, name) as unit:
            ran = unit.run(given, call.run_id, name)
        span.ended = time.time()
        refuse_unpicklable(bound.stage.name, [ran])
        recorded = bound.task is not None and call.recording.each
        if ran.error is None:
            return Collected(Packed.of(ran.value), None, recorded, span)
        failure = self._failed(bound, source.index, given[0], ran)
        if self._to_be_told(bound, call.recording, ran):
            upstream = call.recording.upstream
            self._record_failure(bound, call.run_id, source.label, upstream, given, ran)
            recorded = True
        return Collected(NOTHING, failure, recorded, span)

    def _combine(self, call: CombineCall) -> Combined:
        bound = self._reduces
        assert bound is not None, "it was asked for"
        span, name = self._begin(), f"{bound.stage.name}[{call.label}]"
        log_run_id = call.recording.unit or uuid4()

        def body() -> list[Packed]:
            with combining(bound, log_run_id, name) as combine:
                return [part_of(bound.stage.name, group, combine) for group in call.groups]

        failure, parts = None, []
        try:
            parts = self._as_unit(bound, call.recording, name, body)()
        except Exception as error:
            failure = failure_from(
                error, stage=bound.stage.name, index=call.index, item="what was combined"
            )
        span.ended = time.time()
        recorded = call.recording.unit is not None and bound.task is not None
        return Combined(parts, failure, recorded, span)

    def _parts(
        self,
        source: SourceCall,
        results: Results,
        start: int,
        run_id: UUID | None,
    ) -> Parts | None:
        """What items come to that have ended, where results are combined."""
        bound = self._reduces
        if bound is None:
            return None
        name = f"{bound.stage.name}[{source.label}]"
        try:
            with combining(bound, run_id or source.run_id, name) as combine:
                return parts_of(results.ended, start, results.discoveries, combine)
        except Exception as error:
            index, item = (*source.index, start), f"results of {source.label}"
            return Parts(
                failure=failure_from(error, stage=bound.stage.name, index=index, item=item)
            )

    def _values(self, ended: Sequence[Ran]) -> list[Any]:
        """Results that the flow wants to see."""
        if not self.spec.values_wanted:
            return []
        return [ran.value for ran in ended if ran.error is None]

    def _work_on(
        self,
        bound: BoundStage,
        unit: UnitContext,
        source: SourceCall,
        items: Sequence[Any],
        start: int,
    ) -> list[Ran]:
        """Run the last stage on each item, until the run is stopped."""
        ended: list[Ran] = []
        # Once for all of them: items may take a few microseconds each.
        number, each, named = number_of(source.index), unit.each, unit.named
        for position, item in enumerate(items, start):
            if self.stopped():
                break
            name = f"{bound.stage.name}[{self._label(source, position, item)}]" if named else ""
            if self._marks is not None:
                self._marks.at(number, position)
            ran = unit.run(item, item_run_id(source.run_id, position) if each else None, name)
            ended.append(ran)
            if ran.error is not None and self.spec.fail_fast:
                break
        return ended

    def _label_of(self, source: SourceCall, item: Any) -> str:
        """Short name of what is expanded; that of an inner item is made where the item is."""
        above, _, position = source.label.rpartition(" ")
        if self.spec.label is None or type(item) is Unreadable:
            return source.label
        if not source.inner or position != str(source.inner[-1]):
            return source.label
        return f"{above} {label_of(self.spec.label, item, position)}"

    def _unit_name(self, stage: Stage, call: ExpandCall, given: Sequence[Any]) -> str:
        """Name of the task run of several sources, or of one."""
        first = self._label_of(call.sources[0], given[0])
        if len(call.sources) == 1:
            return f"{stage.name}[{first}]"
        return f"{stage.name}[{first} … {self._label_of(call.sources[-1], given[-1])}]"

    def _label(self, source: SourceCall, position: int, item: Any) -> str:
        label = None if type(item) is Unreadable else self.spec.label
        return f"{source.label} {label_of(label, item, str(position))}"

    def _as_unit(
        self, bound: BoundStage, recording: Recording, name: str, body: Callable[P, R]
    ) -> Callable[P, R]:
        """Let a unit run as one task run, where it is recorded as such."""
        if recording.unit is None or bound.task is None:
            return body
        task, run_id = bound.task, recording.unit

        def recorded(*arguments: P.args, **keywords: P.kwargs) -> R:
            return run_as_unit(
                task,
                run_id=run_id,
                name=name,
                upstream=recording.upstream,
                body=partial(body, *arguments, **keywords),
                free_tags=self.spec.free_tags,
            )

        return recorded

    def _failures(
        self,
        bound: BoundStage,
        recording: Recording,
        source: SourceCall,
        upstream: UUID | None,
        ended: Sequence[Ran],
        items: Sequence[Any],
        start: int,
    ) -> tuple[Sequence[Failure], Sequence[int]]:
        """Describe the items that failed; give those that have a task run, too."""
        failures: list[Failure] = []
        recorded: list[int] = []
        if bound.task is not None and recording.each:
            recorded = list(range(start, start + len(ended)))
        for position, ran in enumerate(ended, start):
            if ran.error is None:
                continue
            item = items[position - start]
            failures.append(self._failed(bound, (*source.index, position), item, ran))
            if self._to_be_told(bound, recording, ran):
                run_id = item_run_id(source.run_id, position)
                label = self._label(source, position, item)
                self._record_failure(bound, run_id, label, upstream, item, ran)
                if not recording.each:
                    recorded.append(position)
        return failures or (), recorded or ()

    def _to_be_told(self, bound: BoundStage, recording: Recording, ran: Ran) -> bool:
        """Whether nobody has told the API of a failure that it should hear of."""
        if bound.task is None:
            return False
        # Where it had a task run, that says Completed if its value was refused only afterwards.
        return ran.ended is None if recording.each else self.spec.failures_recorded

    def _record_failure(
        self,
        bound: BoundStage,
        run_id: UUID,
        label: str,
        upstream: UUID | None,
        item: Any,
        ran: Ran,
    ) -> None:
        assert bound.task is not None
        assert ran.error is not None
        task_run = new_task_run(
            bound.task, run_id=run_id, name=f"{bound.stage.name}[{label}]", upstream=upstream
        )
        record_failure(
            bound.task,
            bound.arguments(item),
            task_run,
            ran.error,
            attempts=ran.attempts,
            began=ran.began,
            ended=time.time() if ran.ended is None else ran.ended,
        )

    def _failed(self, bound: BoundStage, index: tuple[int, ...], item: Any, ran: Ran) -> Failure:
        assert ran.error is not None
        return failure_from(
            ran.error, stage=bound.stage.name, index=index, item=item, attempts=ran.attempts
        )

    def _begin(self) -> Span:
        return Span(started=time.time(), worker=self._place, thread=threading.get_ident())


def _tracked_alone(function: Callable[P, R], *arguments: P.args, **keywords: P.kwargs) -> R:
    with tracking_alone():
        return function(*arguments, **keywords)


def _within(call: ProcessCall, run_id: UUID | None) -> ProcessCall:
    """The same, as part of a task run that is open."""
    if call.recording.each:
        return call
    return replace(call, recording=replace(call.recording, unit=None, within=run_id))


def _in_passing(call: ExpandCall) -> Recording:
    """What Prefect sees of items that are worked on where they are found: at most their unit."""
    return replace(call.recording, each=False)
