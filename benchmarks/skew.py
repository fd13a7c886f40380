"""Skewed work: how far from the fastest possible end, whatever the order of the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

from distributed import Client

from benchmarks import targets
from benchmarks.cluster import Cluster
from benchmarks.evolving import STRATEGIES
from benchmarks.sizes import Sizes
from benchmarks.sleeping import evolve_seconds, plain_seconds
from benchmarks.table import Row, Spread, short
from benchmarks.work import Timed, read, read_task, wait, wait_task

TITLE = "Skewed work on six threads"
READING = (
    "makespan over the larger of total work / threads and the longest parse with its longest item: "
    "no order of the work ends earlier; 1 is the least, the range goes to the worst of the works. "
    "Each work has parses of 0.05 to 3 s (Pareto, clipped) and 0 to 60 items of 5 to "
    "250 ms, all of it sleep; 2 worker processes of 3 threads. The works run in turns through all "
    "ways"
)


def skewed(seed: int, sources: int) -> list[Timed]:
    """Sources of which a few take long, with items of which there are many or none."""
    random = Random(seed)
    return [
        Timed(
            min(3.0, 0.05 * random.paretovariate(0.8)),
            tuple(random.uniform(0.005, 0.25) for _ in range(random.randint(0, 60))),
        )
        for _ in range(sources)
    ]


def least_s(sources: Sequence[Timed], threads: int) -> float:
    """Seconds below which no order of the work on so many threads ends."""
    total = sum(source.parse_s + sum(source.items_s) for source in sources)
    longest = max(source.parse_s + max(source.items_s, default=0.0) for source in sources)
    return max(total / threads, longest)


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Run each work through every way."""
    with Client(cluster.address, set_as_default=False) as client:
        ways: dict[str, Callable[[Sequence[Timed]], float]] = {}
        for strategy in STRATEGIES:
            name = f"evolve, {strategy}, functions"
            ways[name] = partial(evolve_seconds, cluster, strategy, (read, wait))
        if sizes.skewed_beside:
            name = "evolve, as_completed, tasks, recorded"
            ways[name] = partial(evolve_seconds, cluster, "as_completed", (read_task, wait_task))
            ways["plain Dask, as_completed"] = partial(plain_seconds, client)
        factors: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():  # the first run pays for what processes have to import
            way([Timed(0.0, (0.0, 0.0))] * 12)
        for seed in range(sizes.seeds):
            sources = skewed(seed, sizes.skewed_sources)
            for name, way in ways.items():
                factors[name].append(way(sources) / least_s(sources, cluster.threads))
    for name, found in factors.items():
        spread = Spread.of(found)
        yield Row(
            name,
            f"seeds 0 to {sizes.seeds - 1}, {sizes.skewed_sources} sources",
            spread,
            f"worst {short(spread.high)}, seed {found.index(spread.high)}",
            target=targets.SKEWED_WORK if name.startswith("evolve") else None,
        )
