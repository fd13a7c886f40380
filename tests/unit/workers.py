"""Worker threads in simulated time: the real core decides, and what it asks for takes its time.

Every unit costs `OVERHEAD_S` on its thread, as one costs a few milliseconds on its way through
Dask. What waits is begun as Dask begins it: by priority, then first come, first served.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from evolve_tasks.core.actions import Action, Expand, Found, Process, Pull
from evolve_tasks.core.budget import Finish
from evolve_tasks.core.evolution import Evolution, Window
from evolve_tasks.workers import priorities

OVERHEAD_S = 0.003


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


def least_s(sources: list[Source], threads: int) -> float:
    """No order of the work on so many threads is faster than this."""
    longest = max((one.parse_s + max(one.items, default=0.0) for one in sources), default=0.0)
    return max(sum(one.total_s for one in sources) / threads, longest)


@dataclass(slots=True)
class Workers:
    """Threads that do what the core asks for."""

    sources: list[Source]
    threads: int
    core: Evolution
    ran: Ran = field(default_factory=Ran)
    _now: float = 0.0
    _busy: list[tuple[float, int, Expand | Process, list[Found], float, float]] = field(
        default_factory=list
    )
    _ready: list[tuple[int, int, Expand | Process]] = field(default_factory=list)

    def run(self) -> Ran:
        self._do(self.core.begin())
        while self._busy:
            self._now, unit, action, found, seconds, inline_s = heappop(self._busy)
            if isinstance(action, Expand):
                self._do(self.core.expanded(unit, found, seconds=seconds, inline_s=inline_s))
            else:
                self._do(self.core.processed(unit, seconds=seconds))
        assert self.core.finished
        self.ran.makespan_s = self._now
        return self.ran

    def _do(self, actions: list[Action]) -> None:
        todo = list(actions)
        while todo:
            action = todo.pop(0)
            if isinstance(action, Pull):
                left = len(self.sources) - self.core.sources
                todo += self.core.sources_arrived(min(action.most, left))
            elif isinstance(action, Expand | Process):
                priority = priorities.PROCESS
                if isinstance(action, Expand) and not self.core.keeps(action.unit):
                    priority = priorities.EXPAND
                heappush(self._ready, (-priority, action.unit, action))
        while self._ready and len(self._busy) < self.threads:
            self._begin(heappop(self._ready)[2])

    def _begin(self, action: Expand | Process) -> None:
        found: list[Found] = []
        seconds = inline_s = 0.0
        if isinstance(action, Expand):
            for source in self.sources[action.start : action.stop]:
                seconds += source.parse_s
                size = len(source.items)
                here = size <= action.inline
                inline_s += sum(source.items) if here else 0.0
                found.append(Found(size, size if here else 0))
        else:
            items = self.sources[action.source].items[action.start : action.stop]
            seconds = sum(items)
            self.ran.largest = max(self.ran.largest, len(items))
        took = seconds + inline_s
        self.ran.units += 1
        self.ran.largest_s = max(self.ran.largest_s, took)
        ends = self._now + OVERHEAD_S + took
        heappush(self._busy, (ends, action.unit, action, found, seconds, inline_s))


def work_on(
    sources: list[Source],
    threads: int,
    *,
    batch: int | None = None,
    known: bool = True,
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
    return Workers(sources, threads, core).run()
