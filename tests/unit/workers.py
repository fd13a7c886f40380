"""Worker threads in simulated time: the real core decides, and what it asks for takes its time.

Every unit costs `OVERHEAD_S` on its thread, as one costs a few milliseconds on its way through
Dask. What waits is begun as Dask begins it: by priority, then first come, first served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush

from evolve_tasks.core.actions import Action, Expand, Found, Process, Pull, Turn
from evolve_tasks.core.budget import Finish
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.core.window import Window
from evolve_tasks.strategies.submitting import TURNS
from evolve_tasks.workers import priorities

OVERHEAD_S = 0.003


EXPECTED_S = 0.1  # that a unit takes, as far as the scheduler knows


@dataclass(frozen=True, slots=True)
class Source:
    """What a source costs."""

    parse_s: float
    items: tuple[float, ...]

    @property
    def total_s(self) -> float:
        return self.parse_s + sum(self.items)


@dataclass(slots=True)
class Ran:
    """How a run went."""

    makespan_s: float = 0.0
    units: int = 0
    largest_s: float = 0.0  # of all units
    largest: int = 0  # items in one unit
    waiting: int = 0  # items that were found and had not begun, at the most


def least_s(sources: list[Source], threads: int) -> float:
    """No order of the work on so many threads is faster than this."""
    longest = max((one.parse_s + max(one.items, default=0.0) for one in sources), default=0.0)
    return max(sum(one.total_s for one in sources) / threads, longest)


@dataclass(slots=True)
class Workers:
    """Threads that do what the core asks for.

    Args:
        sources: the work.
        threads: how many threads.
        core: decides for the flow.
        nested: a source submits its items itself, and a core on the worker decides for it.
        batch: items in one unit, for those cores.
    """

    sources: list[Source]
    threads: int
    core: Evolution
    nested: bool = False
    batch: int | None = None
    ran: Ran = field(default_factory=Ran)
    _now: float = 0.0
    _submitted: int = 0
    _turns: priorities.Turns = field(
        default_factory=lambda: priorities.Turns(priorities.VirtualTime())
    )
    _found: int = 0
    _begun: int = 0
    _busy: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _ready: list[tuple[int, float, int, Callable[[], None]]] = field(default_factory=list)

    def run(self) -> Ran:
        self._do(self.core.begin())
        while True:
            while self._ready and len(self._busy) < self.threads:
                heappop(self._ready)[3]()
            if not self._busy:
                assert self.core.finished
                self.ran.makespan_s = self._now
                return self.ran
            self._now, _, ended = heappop(self._busy)
            ended()

    def _do(self, actions: list[Action]) -> None:
        todo = list(actions)
        while todo:
            action = todo.pop(0)
            if isinstance(action, Pull):
                left = len(self.sources) - self.core.sources
                todo += self.core.sources_arrived(min(action.most, left))
            elif isinstance(action, Expand):
                turn = self.core.turn(action.unit)
                priority = TURNS[turn]
                if self.nested and turn is not Turn.BEHIND:
                    priority = priorities.NESTED
                self._submit(priority, partial(self._expand, action))
            elif isinstance(action, Process):
                items = self.sources[action.source].items[action.start : action.stop]
                answer = partial(self.core.processed, action.unit, seconds=sum(items))
                work = partial(self._process, items, lambda answer=answer: self._do(answer()))
                self._submit(priorities.PROCESS, work)

    def _submit(self, priority: int, begin: Callable[[], None]) -> None:
        self._submitted += 1
        first, turn = self._turns.submitted(priority, EXPECTED_S)
        heappush(self._ready, (first, turn, self._submitted, begin))

    def _begin(self, took_s: float, ended: Callable[[], None]) -> None:
        self.ran.units += 1
        self.ran.largest_s = max(self.ran.largest_s, took_s)
        heappush(self._busy, (self._now + OVERHEAD_S + took_s, self.ran.units, ended))

    def _expand(self, action: Expand) -> None:
        found: list[Found] = []
        seconds = inline_s = 0.0
        for source in self.sources[action.start : action.stop]:
            seconds += source.parse_s
            size = len(source.items)
            here = size <= action.inline
            inline_s += sum(source.items) if here else 0.0
            found.append(Found(size, size if here else 0))
        # What the flow knows travels with the source.
        ended = partial(self._expanded, action, found, seconds, inline_s, self.core.item_s)
        self._begin(seconds + inline_s, ended)

    def _expanded(
        self,
        action: Expand,
        found: list[Found],
        seconds: float,
        inline_s: float,
        item_s: float | None,
    ) -> None:
        left = sum(one.size - one.ended for one in found)
        self._found += left
        self.ran.waiting = max(self.ran.waiting, self._found - self._begun)
        if self.nested and left:
            _Children(self, action, found, seconds, inline_s, item_s).begin()
            return
        core = self.core
        self._do(core.expanded(action.unit, found, seconds=seconds, inline_s=inline_s))

    def _process(self, items: tuple[float, ...], ended: Callable[[], None]) -> None:
        self._begun += len(items)
        self.ran.largest = max(self.ran.largest, len(items))
        self._begin(sum(items), ended)


@dataclass(slots=True)
class _Children:
    """The items of one unit of sources, submitted from the worker."""

    workers: Workers
    action: Expand
    found: list[Found]
    seconds: float
    inline_s: float
    item_s: float | None
    core: Evolution = field(init=False)

    def begin(self) -> None:
        threads = self.workers.threads
        self.core = Evolution(
            stages=2,
            window=Window(units=max(4, 2 * threads), threads=threads),
            buffered=1,
            batch=self.workers.batch,
            budget=Finish(),
            item_s=self.item_s,
        )
        self._do(self.core.adopt(self.found))

    def _do(self, actions: list[Action]) -> None:
        workers, unit = self.workers, self.action.unit
        for action in actions:
            if isinstance(action, Process):
                source = workers.sources[self.action.start + action.offset]
                items = source.items[action.start : action.stop]
                ended = partial(self._processed, action.unit, sum(items))
                workers._submit(priorities.PROCESS, partial(workers._process, items, ended))
        if self.core.finished:
            whole = [Found(one.size, one.size) for one in self.found]
            core = workers.core
            workers._do(core.expanded(unit, whole, seconds=self.seconds, inline_s=self.inline_s))

    def _processed(self, unit: int, seconds: float) -> None:
        self.inline_s += seconds
        self._do(self.core.processed(unit, seconds=seconds))


def work_on(
    sources: list[Source],
    threads: int,
    *,
    batch: int | None = None,
    known: bool = True,
    nested: bool = False,
) -> Ran:
    """Run sources through the core."""
    core = Evolution(
        stages=2,
        window=Window(units=max(16, 4 * threads), threads=threads),
        buffered=10_000,
        batch=batch,
        budget=Finish(),
        sources_known=len(sources) if known else None,
    )
    return Workers(sources, threads, core, nested, batch).run()
