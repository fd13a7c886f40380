"""What many short sources do not pay for, on real processes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from distributed import Client, LocalCluster
from prefect import flow

from evolve_tasks import EvolveTaskRunner, evolve
from evolve_tasks.options import StrategyName
from evolve_tasks.workers import calls
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
    assert gc.get_threshold() == before != RARE
    until(lambda: client.run(thresholds_here) == there, "workers have theirs again")
    assert RARE not in there.values()


def count_source_calls() -> None:
    """Count what is unpickled of calls in this process from now on."""
    unpickle = calls._source_call

    def counting(*arguments: Any) -> Any:
        calls.unpickled += 1  # type: ignore[attr-defined]
        return unpickle(*arguments)

    calls.unpickled = 0  # type: ignore[attr-defined]
    calls._source_call = counting


def source_calls() -> int:
    return calls.unpickled  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_scheduler_never_unpacks_what_is_sent(client: Client, strategy: StrategyName) -> None:
    client.run_on_scheduler(count_source_calls)
    client.run(count_source_calls)

    @flow(task_runner=EvolveTaskRunner(address=client.scheduler.address))
    def night() -> list[Any]:
        return evolve([0] * 50, numbers_below, abs, strategy=strategy).by_source

    assert night() == [(0, [])] * 50
    assert sum(client.run(source_calls).values()) >= 50, "workers do"
    assert client.run_on_scheduler(source_calls) == 0
