"""What an item costs, and which memory it leaves behind, the more of them there are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks import targets
from benchmarks.cluster import ROOT, Cluster
from benchmarks.iterating import Iterated
from benchmarks.sizes import Sizes
from benchmarks.table import Row, Spread, short

TITLE = "Cost and memory of more items"
READING = (
    "seconds an item over those of an item in the run of 10,000; less is better, 1 means that an "
    "item of a longer run costs the same. Trivial items through `evolve_iter`, 100 in each source, "
    "with tasks, recorded; each run has a flow process of its own. Memory is the largest resident "
    "size during the run less that before it"
)


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Iterate over more and more items."""
    base: Iterated | None = None
    for count in sizes.counts:
        run = iterate(cluster, count)
        each_s = run.seconds / run.items
        yield Row(
            "evolve_iter, as_completed, tasks, recorded",
            f"{run.items:,} items",
            Spread.of([each_s / (base.seconds / base.items)]) if base else None,
            f"{short(each_s * 1e6)} µs an item; grown by {run.flow_mb:.1f} MB in the flow's process"
            f", {run.scheduler_mb:.1f} MB in the scheduler's",
            target=targets.SAME_COST if base else None,
        )
        if count == targets.BASE_ITEMS:
            base = run
    for process, grown_mb, bound_mb in (
        ("flow", run.flow_mb, targets.FLOW_MB),
        ("scheduler", run.scheduler_mb, targets.SCHEDULER_MB),
    ):
        yield Row(
            f"growth of the {process}'s process over {bound_mb} MB",
            f"{run.items:,} items",
            Spread.of([grown_mb / bound_mb]),
            target=targets.WITHIN,
        )


def iterate(cluster: Cluster, count: int) -> Iterated:
    """Run `benchmarks.iterating` in a process of its own."""
    arguments = [cluster.address, str(cluster.scheduler_pid), str(count)]
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.iterating", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Iterated.from_json(ended.stdout)
