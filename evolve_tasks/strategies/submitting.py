"""Units as Dask tasks: what is submitted, under which key, and how results are taken."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Final
from uuid import uuid4

import distributed
from distributed import Client, Future, Queue

from evolve_tasks.answers import PULLED, Answer, Lost
from evolve_tasks.context import cleared, register
from evolve_tasks.core.actions import Expand, Extra, Process, Turn
from evolve_tasks.errors import ClusterLost, ClusterUnfit, InvalidInput
from evolve_tasks.evolving import EvolvingRun
from evolve_tasks.feeding import Arrival, SourceFeed
from evolve_tasks.stages import Stage
from evolve_tasks.strategies.serving import Serving, address_of
from evolve_tasks.strategies.together import Member, apart, by_itself, parties
from evolve_tasks.workers import units
from evolve_tasks.workers.calls import (
    CollectCall,
    CombineCall,
    ExpandCall,
    Measure,
    NestedResult,
    Orphans,
    Part,
    ProcessCall,
    RunSpec,
)
from evolve_tasks.workers.context import on_worker
from evolve_tasks.workers.ended import forget_marks_from, mark_kept
from evolve_tasks.workers.marks import sweep_marks
from evolve_tasks.workers.nested import PROBING_S, NestedCall, run_sources
from evolve_tasks.workers.plugin import (
    PauseMark,
    RunPlugin,
    StopMark,
    pause_name,
    plugin_name,
    stop_name,
)
from evolve_tasks.workers.priorities import EXPAND, MEASURE, NESTED, PROCESS, SOON
from evolve_tasks.workers.streaming import Chunk, chunks_name, forget_queues, permits_name
from evolve_tasks.workers.transport import Packed
from evolve_tasks.workers.watch import RunWatch, watch_name

# How long a run that is left early waits for what is already running. Prefect gives a
# cancelled flow 30 s by default before it kills it; this leaves most of that.
ABANDON_S = 5.0


# How long nothing may end before it is asked whether there are workers at all.
IDLE_S = 5.0

# How long results may be on their way to the flow before it looks after other things; after some
# that took longer, twice as long.
FETCH_S = 10.0

# How often it is looked whether a result that was lost with its worker has been made again: Dask
# calls back when a future has ended, but at once where its result is lost.
LOST_S = 0.2

# A future's status when there will be no result, and when there is nothing to wait for.
FAILED: Final = ("error", "cancelled")
OVER: Final = ("finished", *FAILED)

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
        self._patience_s = FETCH_S

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
            stage, unit, units.expand, self._run, sent, *found, priority=priority
        )
        self._expansions[unit] = expansion
        self._calls[unit] = call, parent
        return self.client.submit(
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
            calls,
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
        return self.client.submit(
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
                known = orphans.items.value()
                items = known[call.part.start - orphans.start : call.part.stop - orphans.start]
                call = replace(call, items=Packed.of(items))
        return call

    def _with_list(
        self, unit: int, parent: int, call: ExpandCall | ProcessCall
    ) -> tuple[ExpandCall | ProcessCall, list[Future[Any]]]:
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
        return replace(part, offset=part.offset + self._firsts.get(parent, 0))

    def _part(self, unit: int, parent: int, part: Part) -> Future[Any]:
        """What a unit takes its items from."""
        found = self._list(parent)
        count, nbytes = self._sizes.get(parent, (0, 0))
        if count < LONG * (part.stop - part.start) or nbytes <= SMALL:
            return found
        # Wherever the unit runs, it gets its slice alone.
        return self.client.submit(
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
            expansion = self._expansions[unit] = self.client.submit(
                units.expand,
                self._run,
                sent,
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
        if self._calls[unit][0].stream is not None and left:
            self._marked = True
            kept = [offset for offset, end in enumerate(measure.ends) if not end.given]
            mark_kept(self.client, self._run, unit, kept)

    def nested(self, unit: int, call: NestedCall, *, turn: Turn) -> Future[Any]:
        """Submit a source as one task that submits its items itself."""
        self._nests = True
        stage = self._stages[call.expand.stage]
        priority = EXPAND if turn is Turn.BEHIND else NESTED
        return self._submit(stage, unit, run_sources, self._run, call, priority=priority)

    def release(self, unit: int) -> None:
        """Let the workers forget the lists that a unit gave."""
        self._sizes.pop(unit, None)
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
        self.client.register_plugin(StopMark(), name=stop_name(self._run))

    def pause(self, paused: bool) -> None:
        """Leave a mark on the workers, at which nested sources submit nothing more; or take it."""
        name = pause_name(self._run)
        if paused:
            self.client.register_plugin(PauseMark(), name=name)
        else:
            self.client.unregister_worker_plugin(name)
        self._paused = paused

    def require_workers(self, under_way: Iterable[Future[Any]]) -> None:
        """Asked now and then while nothing ends; `Serving.require` says what it raises."""
        stages = {stage.name for stage in self._stages}
        # Keys say what they are of; a measure waits for its expansion.
        keys: list[Any] = [future.key for future in under_way]
        names = {str(key[0]).removesuffix(f"-{self._run}") for key in keys}
        for kind, unit, *_ in keys:
            if str(kind).startswith("measure-"):
                names.add(self._stages[self._calls[unit][0].stage].name)
        # What a source of `nested` waits for is under way at its worker, and not seen from here.
        self._serving.require(stages if self._nests else names & stages)

    def take(
        self, futures: Sequence[Future[Any]], leaves: Callable[[], bool]
    ) -> list[Answer | None]:
        """Fetch the results of futures that have ended, and release them.

        A result that was lost with its worker is not waited for: Dask makes it again, which takes
        as long as the work did, or never ends where no worker is left.

        Args:
            futures: N >= 1 futures.
            leaves: whether the run is being left, and nobody waits for results any more.

        Returns:
            Their answers; `None` for one whose result is not there now, and which is kept.

        Raises:
            ClusterLost: a future was cancelled by a lost connection to the scheduler.
            ClusterUnfit: a worker lacks the code of the stages.
        """
        try:
            answers = self._fetch(futures, leaves)
        except BaseException:
            for future in futures:
                future.release()
            raise
        for future, answer in zip(futures, answers, strict=True):
            if answer is not None:
                future.release()
        return answers

    def _fetch(
        self, futures: Sequence[Future[Any]], leaves: Callable[[], bool]
    ) -> list[Answer | None]:
        due = time.monotonic() + self._patience_s
        answers: list[Answer | None] = [None] * len(futures)
        there, one_by_one = _finished(futures, range(len(futures))), False
        while there:
            try:
                found = self._gather([futures[place] for place in there], due, leaves)
            except Exception:
                one_by_one = True  # to find which of them it concerns
                break
            if found is not None:
                for place, answer in zip(there, found, strict=True):
                    answers[place] = answer
                break
            before, there = len(there), _finished(futures, there)
            if len(there) == before:
                break  # they are slow to come, or the run is left
            # A worker died: the others do not wait for what it had.
        for place, future in enumerate(futures):
            if answers[place] is not None:
                continue
            if future.status in FAILED or (one_by_one and future.status == "finished"):
                answers[place] = self._fetch_one(future, due, leaves)
        if time.monotonic() > due:
            self._patience_s *= 2
        return answers

    def _fetch_one(
        self, future: Future[Any], due: float, leaves: Callable[[], bool]
    ) -> Answer | None:
        try:
            if future.status in FAILED:
                answer: Answer = future.result()  # raises at once
                return answer
            found = self._gather([future], due, leaves)
        except (distributed.CancelledError, distributed.client.FutureCancelledError) as error:
            raise ClusterLost(
                f"Dask cancelled {future.key!r}: the connection to the scheduler at "
                f"{address_of(self.client)} was lost, or somebody cancelled the run's tasks there; "
                "see that the scheduler is up and run the flow again"
            ) from error
        except ClusterUnfit:
            raise  # it would be the same for all that come to that worker
        except Exception as error:
            return Lost(error)
        return None if found is None else found[0]

    def _gather(
        self, futures: Sequence[Future[Any]], due: float, leaves: Callable[[], bool]
    ) -> list[Answer] | None:
        """Gather results in one call; `None` as soon as one of them is gone, or time is over.

        Dask waits without a limit for what is gone. That is left behind and not cancelled: others
        may wait for the same call, and would be cancelled with it. It ends when the futures are
        released.
        """
        loop: Any = self.client.loop
        gathering = asyncio.run_coroutine_threadsafe(
            self.client.gather(list(futures), asynchronous=True), loop.asyncio_loop
        )
        while not wait([gathering], LOST_S).done:
            if leaves() or time.monotonic() > due or _some_gone(futures):
                return None
        if gathering.cancelled():  # by somebody else, who waited for the same call
            return None
        return list(gathering.result())

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
        return self.client.submit(
            function,
            *arguments,
            key=(f"{stage.name}-{self._run}", unit, *([together] if together else ())),
            priority=priority,
            resources=self._spec.resources.get(stage.name),
            pure=False,
        )


class Ended:
    """Futures under way, and those of them that have ended, in the order in which they did."""

    def __init__(self) -> None:
        self._news: SimpleQueue[tuple[int, Future[Any] | Arrival | Chunk | None]] = SimpleQueue()
        self._under_way: dict[int, Future[Any]] = {}
        self._lost: dict[int, Future[Any]] = {}  # of those, what has ended and is to be made again

    def add(self, unit: int, future: Future[Any]) -> None:
        """Watch a future; the set may grow at any time."""
        self._under_way[unit] = future
        future.add_done_callback(lambda ended: self._news.put((unit, ended)))

    def watch(self, unit: int, future: Future[Any]) -> None:
        """Know of a future that somebody else waits for."""
        self._under_way[unit] = future

    def tell(self, arrival: Arrival | None) -> None:
        """Wake who waits, with sources that have come or with nothing."""
        self._news.put((PULLED, arrival))

    def tell_chunk(self, chunk: Chunk) -> None:
        """Wake who waits, with items that have come on the way."""
        self._news.put((chunk.unit, chunk))

    def again(self, unit: int, future: Future[Any]) -> None:
        """What `wait` gave was not there: give it again when it has been made again."""
        self._under_way[unit] = self._lost[unit] = future

    def wait(
        self, timeout_s: float
    ) -> tuple[list[tuple[int, Future[Any]]], list[tuple[int, Answer]]]:
        """Wait for news and give all there are: futures that have ended, and what else came.

        Both are empty when time is over, or when somebody was to be woken.
        """
        futures: list[tuple[int, Future[Any]]] = []
        arrivals: list[tuple[int, Answer]] = []
        over, left, woken = time.monotonic() + timeout_s, timeout_s, False
        while left > 0 and not (futures or arrivals or woken):
            for unit, what in self._news_within(min(left, LOST_S) if self._lost else left):
                if isinstance(what, Arrival | Chunk):
                    arrivals.append((unit, what))
                elif what is None:
                    woken = True
                elif what.status in OVER:
                    futures.append((unit, what))
                else:
                    self._lost[unit] = what
            if self._lost:
                futures += [one for one in self._lost.items() if one[1].status in OVER]
            left = over - time.monotonic()
        for unit, _ in futures:
            self._lost.pop(unit, None)
            self._under_way.pop(unit, None)
        return futures, arrivals

    def _news_within(
        self, timeout_s: float
    ) -> Iterator[tuple[int, Future[Any] | Arrival | Chunk | None]]:
        with suppress(Empty):
            yield self._news.get(timeout=timeout_s)
            while True:
                yield self._news.get_nowait()

    def forget(self, unit: int) -> None:
        """Somebody else has taken it."""
        self._under_way.pop(unit, None)

    def under_way(self) -> list[Future[Any]]:
        """Those that have not been given by `wait`."""
        return list(self._under_way.values())


class FutureCarrier:
    """Carries units out as Dask futures that end in any order."""

    def __init__(self, run: EvolvingRun, submitter: Submitter) -> None:
        self.submitter = submitter
        self._run = run
        self.ended = Ended()
        self._parties: dict[int, list[Member]] = {}  # by the first of those that go together
        self._feed = SourceFeed(run.sources, self.ended.tell)
        run.wake = lambda: self.ended.tell(None)
        self._chunks = chunk_feed(submitter, run, self.ended.tell_chunk)

    def pull(self, most: int) -> None:
        self._feed.request(most)

    def expand(self, action: Expand, call: ExpandCall) -> None:
        self.ended.add(
            action.unit,
            self.submitter.expand(
                action.unit,
                call,
                turn=self._run.core.turn(action.unit),
                parent=action.parent,
            ),
        )

    def process(self, action: Process, call: ProcessCall) -> None:
        self.ended.add(action.unit, self.submitter.process(action, call))

    def together(self, actions: Sequence[Expand | Process]) -> None:
        turn = self._run.core.turn(actions[0].unit)
        for party in parties(self._run.sending, actions):
            if len(party) == 1:
                self._alone(*party[0])
                continue
            first = party[0].action.unit
            self._parties[first] = party
            self.ended.add(first, self.submitter.together(party, turn=turn))

    def _alone(self, action: Expand | Process, call: ExpandCall | ProcessCall) -> None:
        if isinstance(action, Process):
            assert isinstance(call, ProcessCall), "it processes"
            self.process(action, call)
        else:
            assert isinstance(call, ExpandCall), "it expands"
            self.expand(action, call)

    def _each(self, unit: int, answer: Answer) -> Iterator[tuple[int, Answer]]:
        """The answers of all that went together with a unit, or its own."""
        party = self._parties.pop(unit, None)
        if party is None:
            yield unit, answer
            return
        for member, one in zip(party, apart(party, answer), strict=True):
            if one is None:
                self.submitter.release(member.action.unit)
                self._alone(*by_itself(self._run.sending, member))
            else:
                yield member.action.unit, one

    def extra(self, action: Extra, call: CollectCall | CombineCall) -> None:
        self.ended.add(action.unit, self.submitter.extra(action.unit, call))

    def release(self, unit: int) -> None:
        self.submitter.release(unit)

    def answers(self) -> Iterable[tuple[int, Answer]]:
        ended, answers = self.ended.wait(PROBING_S if self._run.core.probing else IDLE_S)
        if ended:
            taken = self.submitter.take(
                [future for _, future in ended], lambda: self._run.interrupted
            )
            for (unit, future), answer in zip(ended, taken, strict=True):
                if answer is None:
                    self.ended.again(unit, future)
                    continue
                for member, one in self._each(unit, answer):
                    if isinstance(one, Measure):
                        self.submitter.measured(member, one)
                    elif isinstance(one, NestedResult) and one.orphans:
                        self.submitter.given_back(member, one.orphans)
                    answers.append((member, one))
        if not answers and self.ended.under_way():
            self.submitter.require_workers(self.ended.under_way())
        return answers

    def stop(self) -> None:
        self.submitter.stop()

    def pause(self, paused: bool) -> None:
        self.submitter.pause(paused)

    def permit(self, unit: int, offset: int, number: int) -> None:
        self.submitter.permit(unit, offset, number)

    def close(self) -> None:
        self._feed.close()
        self._chunks.close()

    def abandon(self) -> None:
        abandon(self.submitter, self.ended)


class ChunkFeed:
    """Takes what stages give on the way from the scheduler, in a thread of its own.

    Args:
        client: the client of the run.
        name: name of the queue on which it comes.
        deliver: called with each chunk, in that thread.
    """

    def __init__(self, client: Client, name: str, deliver: Callable[[Chunk], None]) -> None:
        self._client = client
        self._queue = Queue(name, client=client)
        self._deliver = deliver
        self._closed = False
        threading.Thread(target=self._run, name="evolve-chunks", daemon=True).start()

    def close(self) -> None:
        """Take no more."""
        self._closed = True
        if self._client.status == "running":
            self._queue.put(())  # a limit to its waiting would write errors to the scheduler's log

    def _run(self) -> None:
        while not self._closed:
            try:
                chunk = self._queue.get()
            except Exception:
                return  # the client is closed, or the scheduler gone: the run hears of that, too
            if chunk:
                self._deliver(Chunk(*chunk))


def chunk_feed(
    submitter: Submitter, run: EvolvingRun, deliver: Callable[[Chunk], None]
) -> ExitStack:
    """Take what stages give on the way, where one does; to be closed."""
    stack = ExitStack()
    if run.streams.stages:
        submitter.streamed = True
        feed = ChunkFeed(submitter.client, chunks_name(run.run), deliver)
        stack.callback(feed.close)
    return stack


def abandon(submitter: Submitter, ended: Ended) -> None:
    """Let what runs end within `ABANDON_S`, then drop what is left."""
    if submitter.client.status != "running":
        return
    submitter.stop()
    futures = ended.under_way()
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    deadline = time.monotonic() + ABANDON_S
    with suppress(Empty):
        for _ in futures:
            done.get(timeout=max(0.0, deadline - time.monotonic()))
    if rest := [future for future in futures if not future.done()]:
        submitter.client.cancel(rest, asynchronous=False)
    for future in futures:
        future.release()


def _finished(futures: Sequence[Future[Any]], places: Iterable[int]) -> list[int]:
    """Those places at which a future has a result."""
    return [place for place in places if futures[place].status == "finished"]


def _some_gone(futures: Iterable[Future[Any]]) -> bool:
    return any(future.status != "finished" for future in futures)


def new_run_name() -> str:
    """A unique name for a run: short enough for keys, long enough never to meet another."""
    return uuid4().hex[:12]
