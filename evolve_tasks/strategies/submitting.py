"""Units as Dask tasks: what is submitted, under which key, and which lists stay for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar
from uuid import uuid4

from distributed import Client, Future, Queue

from evolve_tasks.context import cleared, register
from evolve_tasks.core.actions import Expand, Process, Turn
from evolve_tasks.errors import InvalidInput
from evolve_tasks.serving import Serving
from evolve_tasks.stages import Stage
from evolve_tasks.strategies.together import Member
from evolve_tasks.workers import units
from evolve_tasks.workers.calls import (
    CollectCall,
    CombineCall,
    ExpandCall,
    Measure,
    Orphans,
    Part,
    ProcessCall,
    RunSpec,
)
from evolve_tasks.workers.context import on_worker
from evolve_tasks.workers.dask_span import in_one_span
from evolve_tasks.workers.ended import forget_marks_from, mark_kept
from evolve_tasks.workers.marks import sweep_marks
from evolve_tasks.workers.nested import NestedCall, run_sources
from evolve_tasks.workers.plugin import (
    PauseMark,
    RunPlugin,
    StopMark,
    pause_name,
    plugin_name,
    stop_name,
)
from evolve_tasks.workers.priorities import EXPAND, MEASURE, NESTED, PROCESS, SOON
from evolve_tasks.workers.streaming import forget_queues, permits_name
from evolve_tasks.workers.transport import NOTHING, Packed
from evolve_tasks.workers.watch import RunWatch, watch_name

C = TypeVar("C", bound=ExpandCall | ProcessCall)

# An expansion's Dask priority.
TURNS: Final = {Turn.BEHIND: EXPAND, Turn.AMONG: PROCESS, Turn.BEFORE: SOON}

# A list that is so many times as long as a batch of it does not travel as a whole, if it is not
# small: cutting the batch out costs a Dask task of its own, about a millisecond, and waits until a
# thread of the worker that has the list is free.
LONG = 4
SMALL = 32_768  # bytes: no more than what Dask says in a few messages about a task


class Submitter:
    """Submits units of one run.

    Keys are `(stage-run, number)`: a constant prefix by stage, so that the dashboard groups
    them and Dask learns durations by stage; never derived from the items, so that equal
    items are worked on each (`pure=False`).

    Args:
        client: the Dask client of the flow's task runner.
        context: name of the run context, as `RunContexts.current` gave it.
        spec: the run.
    """

    def __init__(self, client: Client, context: str | None, spec: RunSpec) -> None:
        self.client = client
        self._context = context
        self._run = spec.run
        self._stages = spec.stages
        self._spec = spec
        self._expansions: dict[int, Future[Any]] = {}
        self._sizes: dict[int, tuple[int, int]] = {}  # items and bytes, by the unit that gave them
        self._given: dict[int, list[str]] = {}  # what stands for the items of each of its lists
        self._calls: dict[int, tuple[ExpandCall, int]] = {}  # and whose list it expands
        self._firsts: dict[int, int] = {}  # number of a unit's first list among all of its task
        self._orphans: dict[tuple[int, int], list[Orphans]] = {}
        self._permits: dict[int, Queue] = {}
        self.streamed = False  # something may be given on the way
        self._again = 0
        self._marked = False
        self._stopped = False
        self._paused = False
        self._serving = Serving(client, spec.resources)
        self._nests = False

    def open(self) -> None:
        """Bring the run to the workers.

        Raises:
            InvalidInput: a stage cannot be pickled.
            ClusterUnfit: the scheduler or a worker cannot take it, as without this package.
        """
        try:
            spec = Packed.of(self._spec)
        except Exception as error:
            raise InvalidInput(
                f"the stages cannot be pickled ({error}), so they cannot be sent to the workers: "
                + "; ".join(self._unpicklable())
                + "; make locks, connections and open files inside the functions"
            ) from error
        register(self.client, RunPlugin(self._run, self._context, spec))
        # Inside a task the context is that of a flow elsewhere, which goes on without us.
        names = [plugin_name(self._run)]
        if self._context and not on_worker():
            names.append(self._context)
        # One for each run, so that tasks of others are left as they are.
        watch = RunWatch(self._run, self.client.id, names, self._spec.importance)
        register(self.client, watch)

    def _unpicklable(self) -> Iterator[str]:
        functions = {stage.name: stage.function for stage in self._stages}
        for stage in self._spec.collect.values():
            functions["collect="] = stage.function
        if self._spec.reduce is not None:
            functions["reduce="] = self._spec.reduce.function
        for name in ("label", "key"):
            if (function := getattr(self._spec, name)) is not None:
                functions[f"{name}="] = function
        for name, function in functions.items():
            try:
                Packed.of(function)
            except Exception as error:
                yield f"{name} cannot ({type(error).__name__}: {error})"
            else:
                yield f"{name} can"

    def missing(self) -> str | None:
        """What no worker offers at this moment and a stage takes, in words."""
        return self._serving.missing()

    def close(self) -> None:
        """Take it away again; the workers send what they still hold for the API."""
        sweep_marks(self._run)
        for future in self._expansions.values():
            future.release()
        self._expansions.clear()
        if self.client.status != "running":
            return
        if self._marked:
            cleared(forget_marks_from, self.client, self._run)
        if self.streamed:
            cleared(self.client.run_on_scheduler, forget_queues, run=self._run)
        cleared(self.client.unregister_scheduler_plugin, watch_name(self._run))
        cleared(self.client.unregister_worker_plugin, plugin_name(self._run))
        if self._stopped:
            cleared(self.client.unregister_worker_plugin, stop_name(self._run))
        if self._paused:
            cleared(self.client.unregister_worker_plugin, pause_name(self._run))

    def expand(self, unit: int, call: ExpandCall, *, turn: Turn, parent: int = -1) -> Future[Any]:
        """Submit an expansion; the future is that of its measure, its list stays there.

        Args:
            unit: the unit.
            call: what it expands.
            turn: when it runs beside items.
            parent: the unit that gave what it expands; below 0 for sources.
        """
        stage = self._stages[call.stage]
        priority = TURNS[turn]
        self._marked |= call.inline > 0
        sent, found = self._with_list(unit, parent, call)
        expansion = self._submit(
            stage, unit, units.expand, self._run, *_apart(sent), *found, priority=priority
        )
        self._expansions[unit] = expansion
        self._calls[unit] = call, parent
        return self._sent(
            units.measure,
            expansion,
            key=(f"measure-{self._run}", unit),
            priority=MEASURE,
            pure=False,
        )

    def together(self, party: Sequence[Member], *, turn: Turn) -> Future[Any]:
        """Submit units that go together; the future is that of their answers."""
        first = party[0].action
        expands, stage = isinstance(first, Expand), self._stages[first.stage]
        calls: list[tuple[ExpandCall | ProcessCall, int]] = []
        lists: dict[Any, tuple[int, Future[Any]]] = {}  # by key: several units take from the same
        for action, call in party:
            if isinstance(action, Process) and isinstance(call, ProcessCall):
                call = self._given_back_to(action, call)
            sent, found = self._with_list(action.unit, action.parent, call)
            place = -1
            for one in found:
                place, _ = lists.setdefault(one.key, (len(lists), one))
            calls.append((sent, place))
        future = self._submit(
            stage,
            first.unit,
            units.expand_together if expands else units.process_together,
            self._run,
            Packed.of(calls),
            *(one for _, one in lists.values()),
            priority=TURNS[turn] if expands else PROCESS,
            together=len(party),
        )
        if not expands:
            return future
        counts: list[int] = []
        at = 0
        for action, call in party:
            assert isinstance(call, ExpandCall), "all of them expand"
            self._marked |= call.inline > 0
            # Each lets go of its own, and the task's lists are there until the last one does.
            self._expansions[action.unit] = Future(future.key, self.client)
            self._calls[action.unit] = call, action.parent
            self._firsts[action.unit] = at
            at += len(call.sources)
            counts.append(len(call.sources))
        return self._sent(
            units.measure_together,
            future,
            counts,
            key=(f"measure-{self._run}", first.unit, len(party)),
            priority=MEASURE,
            pure=False,
        )

    def process(self, action: Process, call: ProcessCall) -> Future[Any]:
        """Submit a batch of a list that stays on the workers, or that the flow has."""
        stage = self._stages[call.stage]
        call = self._given_back_to(action, call)
        sent, found = self._with_list(action.unit, action.parent, call)
        return self._submit(
            stage, action.unit, units.process, self._run, sent, *found, priority=PROCESS
        )

    def _given_back_to(self, action: Process, call: ProcessCall) -> ProcessCall:
        """A call, with its items if a nested unit has given them back."""
        for orphans in self._orphans.get((action.parent, action.offset), ()):
            if orphans.start <= call.part.start < orphans.stop:
                known = orphans.items.elements()
                items = known[call.part.start - orphans.start : call.part.stop - orphans.start]
                call = replace(call, items=Packed.of(items))
        return call

    def _with_list(self, unit: int, parent: int, call: C) -> tuple[C, list[Future[Any]]]:
        """A call as it is sent, and the list that it takes its items from, if they do not come."""
        if call.part is None or (isinstance(call, ProcessCall) and call.items is not None):
            return call, []
        found = self._part(unit, parent, call.part)
        return replace(call, part=self._at_home(parent, call.part)), [found]

    def extra(self, unit: int, call: CollectCall | CombineCall) -> Future[Any]:
        """Submit what was asked for beside the stages."""
        function: Any
        stage, function = self._spec.reduce, units.combine
        if isinstance(call, CollectCall):
            stage, function = self._spec.collect[call.stage], units.collect
        assert stage is not None, "it was asked for"
        return self._submit(stage, unit, function, self._run, call, priority=PROCESS)

    def _at_home(self, parent: int, part: Part) -> Part:
        """A part of a list, by its number where the list is; asked for after the list."""
        given = self._given.get(parent)
        return replace(
            part,
            offset=part.offset + self._firsts.get(parent, 0),
            given=given[part.offset] if given else "",
        )

    def _part(self, unit: int, parent: int, part: Part) -> Future[Any]:
        """What a unit takes its items from."""
        found = self._list(parent)
        count, nbytes = self._sizes.get(parent, (0, 0))
        if count < LONG * (part.stop - part.start) or nbytes <= SMALL:
            return found
        # Wherever the unit runs, it gets its slice alone.
        return self._sent(
            units.cut,
            found,
            self._at_home(parent, part),
            key=(f"cut-{self._run}", unit),
            priority=MEASURE,
            pure=False,
        )

    def _list(self, unit: int) -> Future[Any]:
        """What an expansion gave; it is made again if it is gone for good.

        A list that was lost with its worker is made again by Dask. If a worker dies over that,
        too, Dask gives it up with all that needs it.
        """
        expansion = self._expansions[unit]
        if expansion.status == "error":
            call, parent = self._calls[unit]
            self._again += 1
            self._firsts.pop(unit, None)
            call = replace(call, inline=0, stream=None)
            sent, found = call, list[Future[Any]]()
            if call.part is not None:
                found = [self._list(parent)]
                sent = replace(call, part=self._at_home(parent, call.part))
            expansion = self._expansions[unit] = self._sent(
                units.expand,
                self._run,
                *_apart(sent),
                *found,
                key=(f"again-{self._stages[call.stage].name}-{self._run}", unit, self._again),
                priority=PROCESS,
                resources=self._spec.resources.get(self._stages[call.stage].name),
                pure=False,
            )
        return expansion

    def given_back(self, unit: int, orphans: Sequence[Orphans]) -> None:
        """Keep items of a nested unit whose workers died, until they have ended."""
        for one in orphans:
            self._orphans.setdefault((unit, one.offset), []).append(one)

    def measured(self, unit: int, measure: Measure) -> None:
        """Note how much stays on the workers."""
        left = measure.left
        self._sizes[unit] = left + measure.beside, measure.nbytes
        self._given[unit] = [end.stands_for() for end in measure.ends]
        if self._calls[unit][0].stream is not None and left:
            self._marked = True
            kept = [offset for offset, end in enumerate(measure.ends) if not end.given]
            mark_kept(self.client, self._run, unit, kept)

    def nested(self, unit: int, call: NestedCall, *, turn: Turn) -> Future[Any]:
        """Submit a source as one task that submits its items itself."""
        self._nests = True
        stage = self._stages[call.expand.stage]
        priority = EXPAND if turn is Turn.BEHIND else NESTED
        packed, items = Packed.of(replace(call, expand=_bare(call.expand))), call.expand.items
        return self._submit(stage, unit, run_sources, self._run, packed, items, priority=priority)

    def release(self, unit: int) -> None:
        """Let the workers forget the lists that a unit gave."""
        self._sizes.pop(unit, None)
        self._given.pop(unit, None)
        self._calls.pop(unit, None)
        self._permits.pop(unit, None)
        self._firsts.pop(unit, None)
        for key in [key for key in self._orphans if key[0] == unit]:
            del self._orphans[key]
        future = self._expansions.pop(unit, None)
        if future is not None:
            future.release()

    def permit(self, unit: int, offset: int, number: int) -> None:
        """Tell a unit that gives on the way how far it may go."""
        if self.client.status != "running":
            return
        if unit not in self._permits:
            self._permits[unit] = Queue(permits_name(self._run, unit), client=self.client)
        self._permits[unit].put((offset, number))

    def stop(self) -> None:
        """Leave a mark on the workers, at which queued units end unrun."""
        self._stopped = True
        # The scheduler has it for those that join; who cannot be reached runs nothing for us.
        cleared(self.client.register_plugin, StopMark(), name=stop_name(self._run))

    def pause(self, paused: bool) -> None:
        """Leave a mark on the workers, at which nested sources submit nothing more; or take it."""
        name = pause_name(self._run)
        if paused:
            cleared(self.client.register_plugin, PauseMark(), name=name)
        else:
            cleared(self.client.unregister_worker_plugin, name)
        self._paused = paused

    def require_workers(self, under_way: Iterable[Future[Any]]) -> None:
        """Asked now and then while nothing ends; `Serving.require` says what it raises."""
        stages = {stage.name for stage in self._stages}
        # Keys say what they are of; a measure waits for its expansion.
        keys: list[Any] = [future.key for future in under_way]
        names = {str(key[0]).removesuffix(f"-{self._run}") for key in keys}
        for kind, unit, *_ in keys:
            # It may be let go of meanwhile: `async` asks in a thread.
            if str(kind).startswith("measure-") and (call := self._calls.get(unit)):
                names.add(self._stages[call[0].stage].name)
        # What a source of `nested` waits for is under way at its worker, and not seen from here.
        self._serving.require(stages if self._nests else names & stages)

    def _sent(self, function: Any, *arguments: Any, **keywords: Any) -> Future[Any]:
        """Submit a Dask task."""
        with in_one_span():
            return self.client.submit(function, *arguments, **keywords)

    def _submit(
        self,
        stage: Stage,
        unit: int,
        function: Any,
        *arguments: Any,
        priority: int,
        together: int = 0,
    ) -> Future[Any]:
        # One that has failed with others goes again alone, and is not taken for what it was then.
        return self._sent(
            function,
            *arguments,
            key=(f"{stage.name}-{self._run}", unit, *([together] if together else ())),
            priority=priority,
            resources=self._spec.resources.get(stage.name),
            pure=False,
        )


def _bare(call: ExpandCall) -> ExpandCall:
    """A call without its items, which are packed already."""
    return replace(call, items=NOTHING)


def _apart(call: ExpandCall) -> tuple[Packed, Packed]:
    """A call as `units.expand` takes it."""
    return Packed.of(_bare(call)), call.items


def new_run_name() -> str:
    """A unique name for a run: short enough for keys, long enough never to meet another."""
    return uuid4().hex[:12]
