"""The core alone: what a decision costs, with ten thousand threads that want work.

`python -m benchmarks.core_alone 1000000` runs it in a process of its own, and tells JSON.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from heapq import heappop, heappush

from benchmarks import targets
from benchmarks.cluster import ROOT, Cluster
from benchmarks.resident import growth
from benchmarks.sizes import Sizes
from benchmarks.table import Row, Spread, short
from evolve_tasks.core.actions import Action, Expand, Found, Process, Pull
from evolve_tasks.core.budget import Finish
from evolve_tasks.core.evolution import Evolution
from evolve_tasks.core.window import Window

TITLE = "The core alone"
READING = (
    "simulated makespan over total work / threads; 1 is the least. Sources with 0 to 2,000 items, "
    "parses and items of 0.5 to 1.5 simulated seconds, so that durations make each item a unit. "
    "The clock runs while the core decides, not while the threads are simulated; memory is that "
    "of the simulation too. What importing Prefect leaves in memory is out of the way of the "
    "garbage collector, which would look at it again and again"
)
THREADS = 10_000
FAN_OUT = 1_000  # mean
BUFFERED = 10_000  # the default of the options


@dataclass(frozen=True, slots=True)
class Simulated:
    """How a simulation went.

    Args:
        items: items that were worked on.
        decisions: units that the core gave out.
        seconds: what the core took for them.
        mb: growth of the process.
        stretch: makespan over total work / threads, both simulated.
    """

    items: int
    decisions: int
    seconds: float
    mb: float
    stretch: float


@dataclass(slots=True)
class Threads:
    """Worker threads in simulated time, for a core that decides."""

    core: Evolution
    sources: int
    threads: int
    decisions: int = 0
    items: int = 0
    inside_s: float = 0.0
    work_s: float = 0.0
    now: float = 0.0
    _busy: list[tuple[float, int, Expand | Process, float]] = field(default_factory=list)
    _ready: deque[Expand | Process] = field(default_factory=deque)

    def run(self) -> None:
        """Work until the core has finished."""
        clock = time.perf_counter
        begun = clock()
        actions = self.core.begin()
        self.inside_s += clock() - begun
        self._do(actions)
        while self._busy:
            self.now, unit, action, seconds = heappop(self._busy)
            found: list[Found] = []
            if isinstance(action, Expand):
                found = [Found(fan_out(source)) for source in range(action.start, action.stop)]
            begun = clock()
            if isinstance(action, Expand):
                actions = self.core.expanded(unit, found, seconds=seconds)
            else:
                actions = self.core.processed(unit, seconds=seconds)
            self.inside_s += clock() - begun
            self._do(actions)

    def _do(self, actions: list[Action]) -> None:
        todo = deque(actions)
        while todo:
            action = todo.popleft()
            if isinstance(action, Pull):
                left = self.sources - self.core.sources
                begun = time.perf_counter()
                answer = self.core.sources_arrived(min(action.most, left))
                self.inside_s += time.perf_counter() - begun
                todo.extend(answer)
            elif isinstance(action, Expand | Process):
                self._ready.append(action)
        while self._ready and len(self._busy) < self.threads:
            self._begin(self._ready.popleft())

    def _begin(self, action: Expand | Process) -> None:
        size = action.stop - action.start
        self.decisions += 1
        if isinstance(action, Process):
            self.items += size
        seconds = size * (0.5 + scattered(action.unit))
        self.work_s += seconds
        heappush(self._busy, (self.now + seconds, action.unit, action, seconds))


def scattered(number: int) -> float:
    """A number from 0 to 1 that looks random and costs less than one that is."""
    return (number * 2_654_435_761 % 2**32) / 2**32


def fan_out(source: int) -> int:
    """Items of a source."""
    return int(2 * FAN_OUT * scattered(source))


def simulate(items: int, threads: int = THREADS) -> Simulated:
    """Let a core decide about some `items` items on so many threads."""
    sources = max(1, items // FAN_OUT)
    core = Evolution(
        stages=2,
        window=Window(units=max(16, 4 * threads), threads=threads),
        buffered=BUFFERED,
        batch=None,
        budget=Finish(),
        sources_known=sources,
    )
    simulation = Threads(core, sources, threads)
    with growth([os.getpid()]) as grown:
        simulation.run()
    if not core.finished:
        raise RuntimeError("the core has not finished, and nothing is in flight")
    return Simulated(
        simulation.items,
        simulation.decisions,
        simulation.inside_s,
        grown.mb[0],
        simulation.now / (simulation.work_s / threads),
    )


def measure(_: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Simulate in a process of its own, whose memory nothing else has used."""
    ran, fewer = _simulated(sizes.decisions), _simulated(sizes.decisions // 10)
    yield Row(
        "core, batch by durations",
        f"{ran.items:,} items on {THREADS:,} threads",
        Spread.of([ran.stretch]),
        f"{short(ran.decisions / ran.seconds)} decisions/s, "
        f"{short(ran.seconds / ran.decisions * 1e6)} µs each; grown by {ran.mb:.1f} MB",
    )
    yield Row(
        f"core, decisions a second over {targets.DECISIONS:,}",
        f"{ran.items:,} items on {THREADS:,} threads",
        Spread.of([ran.decisions / ran.seconds / targets.DECISIONS]),
        target=targets.AT_LEAST,
    )
    yield Row(
        "core, its memory over that for a tenth of the items",
        f"{ran.items:,} items on {THREADS:,} threads",
        Spread.of([ran.mb / max(1.0, fewer.mb)]),
        f"{ran.mb:.1f} MB beside {fewer.mb:.1f} MB",
        target=targets.CONSTANT,
    )


def _simulated(items: int) -> Simulated:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.core_alone", str(items)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Simulated(**json.loads(ended.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # a third of a million objects that are not the core's
    print(json.dumps(asdict(simulate(int(sys.argv[1])))))
