"""One run of work that sleeps, timed and checked: through evolve, and through plain Dask."""

from __future__ import annotations

import time
from collections.abc import Sequence

from distributed import Client

from benchmarks.cluster import Cluster, settle
from benchmarks.evolving import Strategy, evolved
from benchmarks.recipes import by_completion
from benchmarks.work import Timed, check, read, timed_results, wait


def evolve_seconds(
    cluster: Cluster, strategy: Strategy, stages: Sequence[object], sources: Sequence[Timed]
) -> float:
    """Seconds that evolve takes; its results are checked."""
    seconds, results = evolved(cluster.address, sources, stages, strategy)
    check(results, timed_results(sources), f"evolve, {strategy}")
    return seconds


def plain_seconds(client: Client, sources: Sequence[Timed]) -> float:
    """Seconds that Dask's `as_completed` recipe takes; its results are checked."""
    begun = time.perf_counter()
    results = by_completion(client, sources, read, wait)
    seconds = time.perf_counter() - begun
    check(results, timed_results(sources), "plain Dask")
    settle(client)
    return seconds
