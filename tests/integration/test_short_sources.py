"""What many short sources do not pay for, on real processes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from distributed import Client, LocalCluster, SchedulerPlugin
from prefect import flow

from evolve_tasks import EvolveTaskRunner, evolve
from evolve_tasks.options import StrategyName
from evolve_tasks.workers.garbage import RARE
from tests.integration.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

STRATEGIES: list[StrategyName] = ["as_completed", "async", "nested"]


@pytest.fixture(scope="module")
def client(prefect_api: str) -> Iterator[Client]:
    with (
        LocalCluster(
            processes=True, n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def numbers_below(limit: int) -> list[int]:
    return list(range(limit))


def thresholds(_: int) -> tuple[int, int, int]:
    return gc.get_threshold()


def thresholds_here() -> tuple[int, int, int]:
    return gc.get_threshold()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_garbage_is_looked_for_rarely_during_the_run_alone(
    client: Client, strategy: StrategyName
) -> None:
    before, there = gc.get_threshold(), client.run(thresholds_here)
    while_open: list[tuple[int, int, int]] = []

    def sources() -> Iterator[int]:
        while_open.append(gc.get_threshold())
        yield from [3, 4]

    @flow(task_runner=EvolveTaskRunner(address=client.scheduler.address))
    def night() -> list[Any]:
        return evolve(sources(), numbers_below, thresholds, strategy=strategy).results

    assert night() == [RARE] * 7
    assert while_open == [RARE]
    assert gc.get_threshold() == before
    until(lambda: client.run(thresholds_here) == there, "workers have theirs again")
    assert RARE not in there.values()


class Listening(SchedulerPlugin):
    """Keeps what a scheduler has of the arguments of tasks."""

    name = "listening"

    def __init__(self) -> None:
        self.found: set[str] = set()

    def update_graph(self, scheduler: Any, *, keys: Any, **_: Any) -> None:
        for key in keys:
            for argument in getattr(scheduler.tasks[key].run_spec, "args", ()):
                self.found.add(type(argument).__name__)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_said_of_sources_is_nothing_to_a_scheduler(strategy: StrategyName) -> None:
    listening = Listening()
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        cluster.scheduler.add_plugin(listening)

        @flow(task_runner=EvolveTaskRunner(cluster=cluster))
        def night() -> list[Any]:
            return evolve([2] * 50, numbers_below, abs, strategy=strategy).by_source

        assert night() == [(2, [0, 1])] * 50
    assert "Packed" in listening.found
    assert not listening.found & {"ExpandCall", "NestedCall", "SourceCall", "list", "tuple"}
