"""Runs leave nothing in the spans of Dask's scheduler, which it keeps as long as it lives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from distributed import Client, LocalCluster, Scheduler, Worker, span
from prefect import flow, task

from evolve_tasks import EvolveTaskRunner, evolve
from evolve_tasks.options import StrategyName
from evolve_tasks.workers.dask_span import NAME, forget_groups
from tests.integration.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

STRATEGIES: list[StrategyName] = ["as_completed", "async", "nested"]


@pytest.fixture
def client(prefect_api: str) -> Iterator[Client]:
    """Nobody else has used it: what it has is of the runs of one test."""
    with (
        LocalCluster(
            processes=True, n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@task
def numbers_below(limit: int) -> list[int]:
    return list(range(limit))


@task
def twice(x: int) -> int:
    return 2 * x


def run(client: Client, strategy: StrategyName) -> None:
    @flow(task_runner=EvolveTaskRunner(address=client.scheduler.address))
    def night() -> None:
        submitted = twice.submit(1)
        found = evolve([3, 4], numbers_below, twice, strategy=strategy, batch=2)
        assert found.counts.done == 7
        assert submitted.result() == 2

    night()
    until(lambda: not client.run_on_scheduler(tasks), "the scheduler has forgotten all tasks")


def tasks(dask_scheduler: Scheduler) -> int:
    return len(dask_scheduler.tasks)


def spans(dask_scheduler: Scheduler) -> dict[str, tuple[int, int]]:
    """Of each span by its name, groups and entries of metadata."""
    found: dict[str, tuple[int, int]] = {}
    for one in dask_scheduler.extensions["spans"].spans.values():
        noted = one._metadata["collections"] if one._metadata else ()
        groups, entries = found.get(" ".join(one.name), (0, 0))
        found[" ".join(one.name)] = groups + len(one.groups), entries + len(noted)
    return found


def asked(dask_scheduler: Scheduler) -> float:
    """What Dask's dashboard asks for, of all spans and of ours."""
    extension = dask_scheduler.extensions["spans"]
    whole = extension.merge_all()
    assert whole.cumulative_worker_metrics
    assert whole.done
    ours = extension.spans[NAME]
    assert ours.cumulative_worker_metrics
    return float(ours.stop)


def counted(dask_worker: Worker) -> set[str]:
    """Spans that a worker counts for."""
    keys = [key for key in dask_worker.digests_total if isinstance(key, tuple)]
    return {str(key[1]) for key in keys if key[0] == "execute"}


def test_all_runs_share_a_span_that_does_not_grow(client: Client) -> None:
    sizes = []
    for _ in range(2):
        for strategy in STRATEGIES:
            run(client, strategy)
        found = client.run_on_scheduler(spans)
        assert set(found) == {NAME}
        sizes.append(found[NAME])
    # Of the last run, whose tasks may be forgotten a moment after it has looked.
    for groups, entries in sizes:
        assert groups <= 5
        assert entries <= 20
    began = time.time()
    run(client, "as_completed")
    client.run_on_scheduler(forget_groups)  # as the next run does
    assert client.run_on_scheduler(spans)[NAME] == (1, 0)
    assert began < client.run_on_scheduler(asked) < time.time()
    for one in client.run(counted).values():
        assert one <= {NAME}, "no worker counts for another span"


def test_who_has_a_span_of_their_own_keeps_it(client: Client) -> None:
    with span("mine"):
        run(client, "as_completed")
    found: dict[str, Any] = client.run_on_scheduler(spans)
    assert set(found) == {"mine"}
    assert found["mine"][0] > 0, "and what it has is theirs"
