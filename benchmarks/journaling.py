"""What a journal costs: the same items with one and without."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from uuid import uuid4

from benchmarks import targets
from benchmarks.cluster import Cluster
from benchmarks.evolving import evolved
from benchmarks.pairing import in_turns, over
from benchmarks.sizes import Sizes
from benchmarks.table import Row, Spread, short
from benchmarks.work import Timed, check, read_task, timed_results, wait_task

TITLE = "What a journal costs"
READING = (
    "wall time of evolve (`as_completed`, tasks) with a journal on the local disk over that "
    "without one, in turns; less is better. The last row is a later run that finds everything in "
    "the journal"
)
ITEM_S = 0.001


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Measure it on items of a millisecond."""
    shape = sizes.journaled
    sources = [Timed(0.0, (ITEM_S,) * shape.items)] * shape.sources
    expected = timed_results(sources)
    names: list[str] = []

    def seconds(*, journal: bool, again: bool = False) -> float:
        if journal and not again:
            names.append(f"benchmark-{uuid4()}")
        options = {"journal": names[-1]} if journal else {}
        stages = (read_task, wait_task)
        took_s, results = evolved(cluster.address, sources, stages, "as_completed", **options)
        check(results, expected, "evolve with a journal" if journal else "evolve")
        return took_s

    found = in_turns(
        {
            "without": partial(seconds, journal=False),
            "with": partial(seconds, journal=True),
            "again": partial(seconds, journal=True, again=True),
        },
        sizes.repeats,
    )
    work = f"{shape} items of {ITEM_S * 1000:g} ms"
    beside = f"beside {short(Spread.of(found['without']).median)} s"
    for name, target in (("with", targets.JOURNAL), ("again", None)):
        label = "evolve with a journal" if name == "with" else "the same again"
        figure = f"{short(Spread.of(found[name]).median)} s {beside}"
        yield Row(label, work, over(found[name], found["without"]), figure, target=target)
