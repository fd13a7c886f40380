"""What it costs that people see a run: the same items seen, and as unseen as they can be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks import targets
from benchmarks.cluster import Cluster
from benchmarks.evolving import evolved
from benchmarks.pairing import in_turns, over
from benchmarks.sizes import Sizes
from benchmarks.table import Row, Spread, short
from benchmarks.work import Timed, check, read, read_task, timed_results, wait, wait_task

TITLE = "What it costs to be seen"
READING = (
    "wall time of evolve (`as_completed`) with tasks, task runs, progress, report and events, as "
    "all of it is by default, over that of the same functions without task runs and progress, in "
    "turns; less is better. A test counts the calls to the API"
)
ITEM_S = 0.001


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Measure it on items of a millisecond."""
    shape = sizes.journaled
    sources = [Timed(0.0, (ITEM_S,) * shape.items)] * shape.sources
    expected = timed_results(sources)

    def seconds(*, seen: bool) -> float:
        stages = (read_task, wait_task) if seen else (read, wait)
        options = {"progress": True} if seen else {"record": "sources"}
        took_s, results = evolved(cluster.address, sources, stages, "as_completed", **options)
        check(results, expected, "evolve, seen" if seen else "evolve, unseen")
        return took_s

    found = in_turns(
        {"unseen": partial(seconds, seen=False), "seen": partial(seconds, seen=True)},
        sizes.repeats,
    )
    yield Row(
        "evolve, as it is by default",
        f"{shape} items of {ITEM_S * 1000:g} ms",
        over(found["seen"], found["unseen"]),
        f"{short(Spread.of(found['seen']).median)} s beside "
        f"{short(Spread.of(found['unseen']).median)} s",
        target=targets.SEEN,
    )
