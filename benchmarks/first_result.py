"""Seconds until there is a first result, which a reader of `evolve_iter` waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from distributed import Client

from benchmarks import recipes
from benchmarks.cluster import Cluster, settle
from benchmarks.evolving import STRATEGIES, seconds_to_first
from benchmarks.pairing import in_turns, over
from benchmarks.sizes import Sizes
from benchmarks.table import Row, Spread, short
from benchmarks.work import parse, parse_task, process, process_task

TITLE = "First result"
READING = (
    "seconds until the first item of `evolve_iter`, over those until the first processed item of "
    "Dask's `as_completed` recipe, in turns; less is better. Connecting to the cluster counts for "
    "evolve, not for the recipe"
)


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Measure each strategy beside the recipe."""
    shape = sizes.shapes[-1]
    with Client(cluster.address, set_as_default=False) as client:

        def plain() -> float:
            seconds = recipes.seconds_to_first(client, shape.sizes, parse, process)
            settle(client)
            return seconds

        turns: dict[str, Callable[[], float]] = {"plain Dask, as_completed": plain}
        stages = parse_task, process_task
        for strategy in STRATEGIES:
            turns[f"evolve_iter, {strategy}, tasks, recorded"] = partial(
                seconds_to_first, cluster.address, shape.sizes, stages, strategy
            )
        found = in_turns(turns, sizes.repeats)
    plain_s = next(iter(found.values()))
    for name, seconds in found.items():
        first = Spread.of(seconds)
        yield Row(name, str(shape), over(seconds, plain_s), f"{short(first.median)} s")
