"""Items per second beside plain Dask, all of it in one run on one cluster: `make bench`.

Absolute figures drift with the machine; the ratios hold. Each row is measured three times and
its median is shown. Results are checked, and what was recorded is in the API before the clock
stops.
"""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, as_completed
from prefect import flow, task
from prefect.testing.utilities import prefect_test_harness
from rich.console import Console
from rich.table import Table

from evolve_tasks import EvolveTaskRunner, evolve

REPEATS = 3
SHAPES = {"100 x 1,000": [1_000] * 100, "10,000 x 5": [5] * 10_000}
RECIPE_SHAPE = [50] * 100
STRATEGIES = ["as_completed", "async", "nested", "sequential"]


def parse(size: int) -> list[int]:
    """As many items as the source says."""
    return list(range(size))


def process(x: int) -> int:
    """The least that an item can cost."""
    return x + 1


parse_task, process_task = task(parse, name="parse"), task(process, name="process")


def recipe(client: Client, sizes: list[int]) -> list[int]:
    """The first way of Dask's example: lengths come back, items are submitted one by one."""
    lists = client.map(parse, sizes, pure=False)
    lengths = client.map(len, lists)
    list_of = dict(zip(lengths, lists, strict=True))
    found: dict[Any, list[Any]] = {}
    for length in as_completed(lengths, loop=client.loop):
        items = list_of[length]
        found[items] = []
        for i in range(length.result()):
            item = client.submit(operator.getitem, items, i, priority=1)
            found[items].append(client.submit(process, item, priority=1, pure=False))
    gathered: list[int] = client.gather([future for items in lists for future in found[items]])
    return gathered


def rate(work: Callable[[], list[int]], sizes: list[int]) -> float:
    """Items per second, the median of several runs."""
    expected = [x + 1 for size in sizes for x in range(size)]
    rates = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        results = work()
        seconds = time.perf_counter() - begun
        if results != expected:
            raise AssertionError("a benchmark with wrong results measures nothing")
        rates.append(len(expected) / seconds)
    return statistics.median(rates)


def measure(address: str) -> list[tuple[str, str, float]]:
    """Measure every row: what, shape, items per second."""
    rows = []
    with Client(address, set_as_default=False) as client:
        recipe(client, [1])  # the first tasks of a cluster pay for imports
        rows.append(
            (
                "plain Dask recipe",
                "100 x 50",
                rate(lambda: recipe(client, RECIPE_SHAPE), RECIPE_SHAPE),
            )
        )

    @flow(task_runner=EvolveTaskRunner(address=address))
    def evolving(sizes: list[int], strategy: str, tasks: bool) -> list[int]:
        stages = (parse_task, process_task) if tasks else (parse, process)
        return evolve(sizes, *stages, strategy=strategy, progress=False).results

    evolving([1], "as_completed", True)
    for shape, sizes in SHAPES.items():
        for strategy in STRATEGIES:
            for tasks in (False, True):
                name = f"evolve, {strategy}, {'tasks, recorded' if tasks else 'functions'}"
                work = lambda: evolving(sizes, strategy, tasks)  # noqa: B023, E731
                rows.append((name, shape, rate(work, sizes)))
    return rows


def main() -> None:
    """Measure, print, and write RESULTS.md beside this file."""
    with (
        prefect_test_harness(server_startup_timeout=120),
        LocalCluster(n_workers=CPU_COUNT, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        rows = measure(cluster.scheduler_address)
    base = rows[0][2]
    table = Table("what", "sources x items", "times plain Dask", "items/s")
    lines = ["| what | sources x items | times plain Dask | items/s |", "|---|---|---:|---:|"]
    for name, shape, found in rows:
        cells = (name, shape, f"{found / base:.1f}", f"{found:,.0f}")
        table.add_row(*cells)
        lines.append(f"| {' | '.join(cells)} |")
    Console(width=120).print(table)
    head = (
        f"# Results\n\nTrivial items, {CPU_COUNT} worker processes of one thread, in one run.\n\n"
    )
    Path(__file__).with_name("RESULTS.md").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
