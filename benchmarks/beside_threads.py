"""Prefect's own `ThreadPoolTaskRunner` beside `EvolveTaskRunner`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prefect.task_runners import ThreadPoolTaskRunner

from benchmarks.cluster import Cluster
from benchmarks.evolving import runner_on
from benchmarks.sizes import Sizes
from benchmarks.stock import map_row, mapped_in_turns
from benchmarks.table import Row

TITLE = "Prefect's ThreadPoolTaskRunner beside EvolveTaskRunner"
READING = (
    "task runs a second over those of `EvolveTaskRunner`, up to the last result, in turns; more is "
    "better. The thread pool has no other processes: its tasks share one interpreter"
)


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Measure both runners in turns."""
    runners: dict[str, tuple[Callable[[], Any], int]] = {
        "EvolveTaskRunner": (lambda: runner_on(cluster.address), sizes.runner_items),
        "ThreadPoolTaskRunner": (ThreadPoolTaskRunner, sizes.runner_items),
    }
    found = mapped_in_turns(runners, sizes.repeats)
    ours = [one.rate for one in found["EvolveTaskRunner"]]
    for name, (_, count) in runners.items():
        yield map_row(name, count, found[name], ours)
