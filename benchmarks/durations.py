"""Items of 0 to 100 ms: from which length on the way through evolve costs nothing any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from distributed import Client

from benchmarks import targets
from benchmarks.cluster import Cluster
from benchmarks.evolving import evolved
from benchmarks.pairing import in_turns, over
from benchmarks.sizes import Shape, Sizes
from benchmarks.sleeping import evolve_seconds, plain_seconds
from benchmarks.table import Row, Spread, short
from benchmarks.work import Timed, read, read_task, wait, wait_task

TITLE = "Item durations beside plain Dask"
READING = (
    "wall time of evolve (`as_completed`) over that of Dask's `as_completed` recipe on the same "
    "sleeping items, in turns; less is better. Functions record nothing, as the recipe does; tasks "
    "are recorded, and the clock stops when the API knows them"
)
DURATIONS_S = (0.0, 0.001, 0.01, 0.1)
LONG_S = 0.1  # from here on the project states a target
FEW = 5  # items of a source, where there are many sources
FEW_SOURCES = 3


class Cell(NamedTuple):
    """Items of one duration, in one shape."""

    seconds: float
    shape: Shape

    @property
    def sources(self) -> list[Timed]:
        """Sources that take no time themselves."""
        return [Timed(0.0, (self.seconds,) * self.shape.items)] * self.shape.sources


def cells(sizes: Sizes) -> list[Cell]:
    """Every duration in both shapes: many sources with few items, few with many."""
    made = []
    for seconds in DURATIONS_S:
        fits = round(sizes.work_s / seconds) if seconds else sizes.most_items
        total = min(fits, sizes.most_items)
        made.append(Cell(seconds, Shape(max(1, total // FEW), FEW)))
        made.append(Cell(seconds, Shape(FEW_SOURCES, max(1, total // FEW_SOURCES))))
    return made


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Measure every cell."""
    ways = {"functions": (read, wait)}
    if sizes.recorded_durations:
        ways["tasks, recorded"] = (read_task, wait_task)
    with Client(cluster.address, set_as_default=False) as client:
        warm = Cell(0.0, Shape(2, 2)).sources
        plain_seconds(client, warm)
        for stages in ways.values():
            evolved(cluster.address, warm, stages, "as_completed")
        for cell in cells(sizes):
            sources = cell.sources
            turns: dict[str, Callable[[], float]] = {"": partial(plain_seconds, client, sources)}
            for name, stages in ways.items():
                turns[name] = partial(evolve_seconds, cluster, "as_completed", stages, sources)
            found = in_turns(turns, sizes.repeats)
            for name in ways:
                yield _row(cell, name, found[name], found[""])


def _row(cell: Cell, name: str, ours: Sequence[float], plain: Sequence[float]) -> Row:
    return Row(
        f"evolve, as_completed, {name}",
        f"{cell.shape} items of {cell.seconds * 1000:g} ms",
        over(ours, plain),
        f"{short(Spread.of(ours).median)} s beside {short(Spread.of(plain).median)} s",
        target=targets.LONG_ITEMS if cell.seconds >= LONG_S else None,
    )
