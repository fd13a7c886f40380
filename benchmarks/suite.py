"""The sections of both commands, and the clusters that they run on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from benchmarks import (
    core_alone,
    durations,
    first_result,
    growth,
    journaling,
    monitoring,
    skew,
    stock,
    throughput,
)
from benchmarks.cluster import dask_cluster
from benchmarks.machine import machine
from benchmarks.running import Measuring, SectionModule
from benchmarks.sizes import Sizes
from benchmarks.table import Run

TWO_THREADS: dict[str, SectionModule] = {
    "throughput": throughput,
    "stock": stock,
    "durations": durations,
    "first": first_result,
    "growth": growth,
    "journal": journaling,
    "seen": monitoring,
    "core": core_alone,
}
SIX_THREADS: dict[str, SectionModule] = {"skew": skew}


def measure(command: str, home: Path, sizes: Sizes, wanted: Collection[str]) -> Measuring:
    """Measure the sections that are wanted, with a Prefect server that is up already.

    Args:
        command: what was called, for the table.
        home: directory for what the clusters write.
        sizes: how much is measured.
        wanted: names of sections.
    """
    measuring = Measuring(Run(command, machine(), []), sizes)
    for threads, modules in ((1, TWO_THREADS), (3, SIX_THREADS)):
        chosen = [module for name, module in modules.items() if name in wanted]
        measure_on(measuring, home / f"threads-{threads}", threads, chosen)
    return measuring


def measure_on(
    measuring: Measuring, home: Path, threads: int, modules: Collection[SectionModule]
) -> None:
    """Measure sections on a cluster of two worker processes with so many threads each."""
    if not modules:
        return
    with dask_cluster(home, workers=2, threads=threads) as cluster:
        for module in modules:
            measuring.add(module, cluster)
