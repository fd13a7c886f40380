"""Two flow runs at once on one Dask cluster: both get on, and nothing of them stays there."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, Scheduler
from prefect import flow, tags, task
from prefect.context import TagsContext
from prefect.runtime import flow_run

from evolve_tasks import EvolveTaskRunner, evolve
from tests.integration.dask_processes import DaskProcess
from tests.integration.servers import free_port
from tests.integration.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

SOURCES, ITEMS = 10, 5
ITEM_S = 0.15  # long beside the way of an answer to a flow that is short of CPU
LONGER = 3  # times as much work for the run that begins
AHEAD = 5  # items of the first run that are done when the second begins

Item = tuple[str, str]


@task
def few(source: Item) -> list[Item]:
    return [source] * ITEMS


@task
def all_at_once(source: Item) -> list[Item]:
    return [source] * SOURCES * ITEMS


@task
def noted(item: Item) -> tuple[str, list[str]]:
    """Note when it ran, and tell in which flow run and with which tags."""
    diary, name = item
    time.sleep(ITEM_S)
    with Path(diary, name).open("a") as lines:
        lines.write(f"{time.time()}\n")
    context = TagsContext.get()
    return str(flow_run.name), sorted(context.current_tags)


def times(diary: Path, name: str) -> list[float]:
    path = diary / name
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def both(
    diary: Path,
    address: str,
    first: dict[str, Any],
    second: dict[str, Any],
    *,
    sources: int = SOURCES,
    parse: Any = few,
) -> float:
    """Run both at once; give the second one's share of what was done while both had work."""
    told: dict[str, Any] = {}

    def night(name: str, sources: int, options: dict[str, Any]) -> None:
        @flow(name="shared", flow_run_name=name, task_runner=EvolveTaskRunner(address=address))
        def shared() -> None:
            with tags(f"tag-of-{name}"):
                found = evolve(
                    [(str(diary), name)] * sources, parse, noted, record="sources", **options
                )
            told[name] = found.results

        shared()

    threads = [
        threading.Thread(target=night, args=arguments)
        # The first one lasts until the other has begun, however long that takes.
        for arguments in (("first", LONGER * sources, first), ("second", sources, second))
    ]
    threads[0].start()
    until(lambda: len(times(diary, "first")) >= AHEAD, "the first run is under way")
    threads[1].start()
    for thread in threads:
        thread.join()
    for name, times_as_many in (("first", LONGER), ("second", 1)):
        assert told[name] == [(name, [f"tag-of-{name}"])] * SOURCES * ITEMS * times_as_many
    one, other = times(diary, "first"), times(diary, "second")
    begun, over = min(other) - ITEM_S, min(max(one), max(other))
    counts = [sum(begun <= when <= over for when in whens) for whens in (one, other)]
    return counts[1] / sum(counts)


def left_of_us(dask_scheduler: Scheduler) -> list[str]:
    """What the scheduler keeps of runs."""
    kept = [*dask_scheduler.plugins, *dask_scheduler.worker_plugins, *dask_scheduler.task_metadata]
    return [str(task) for task in dask_scheduler.tasks] + [
        name for name in kept if str(name).startswith("evolve-")
    ]


@pytest.mark.parametrize(("first", "second"), [("as_completed", "nested"), ("async", "async")])
def test_both_get_on(first: str, second: str, tmp_path: Path, process_workers: str) -> None:
    """Whoever comes later is not left waiting until the other has ended."""
    options = {"batch": 1}
    share = both(
        tmp_path,
        process_workers,
        {"strategy": first, **options},
        {"strategy": second, **options},
    )
    assert 0.25 <= share <= 0.75
    with Client(process_workers) as client:
        until(lambda: not client.run_on_scheduler(left_of_us), "nothing of them is left", 10)


KEPT_MB = 20  # what an allocator may keep, and not what a run leaves


def test_the_memory_of_the_scheduler_comes_back(tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    at = ("--port", address.rpartition(":")[2])
    # Dask keeps the last hundred thousand transitions: what it does not need here.
    few = {"DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "100"}
    with (
        DaskProcess(
            *(tmp_path / "scheduler", "scheduler", "--host", "127.0.0.1", *at), environment=few
        ),
        DaskProcess(tmp_path / "worker", "worker", address, "--nthreads", "2"),
        Client(address, timeout=60, set_as_default=False) as client,
    ):
        client.wait_for_workers(1, 60)
        process = psutil.Process(client.run_on_scheduler(os.getpid))

        def two_at_once() -> float:
            """Two runs of five thousand items, in units of ten; what the scheduler has then."""
            flows = [
                flow(name=name, task_runner=EvolveTaskRunner(address=address))(many_units)
                for name in ("one", "other")
            ]
            threads = [threading.Thread(target=one) for one in flows]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            until(lambda: not client.run_on_scheduler(left_of_us), "nothing of them is left", 10)
            return process.memory_info().rss / 1e6

        first = two_at_once()
        later = [two_at_once() for _ in range(2)]
        assert max(later) - first < KEPT_MB, (first, later)


def many_units() -> None:
    outcome = evolve([100] * 50, range, abs, batch=10, record="sources", progress=False)
    assert outcome.counts.done == 5_000


def test_items_that_matter_more_go_first(tmp_path: Path, process_workers: str) -> None:
    options = {"strategy": "as_completed", "batch": 1}
    more = {**options, "priority": 5}
    share = both(tmp_path, process_workers, options, more, sources=1, parse=all_at_once)
    assert share >= 0.65
