"""Short lists that go together: few Dask tasks and task runs, and the same outcome as alone."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import pytest
from distributed import LocalCluster
from prefect import task
from prefect.runtime import flow_run

from evolve_tasks import EvolveTaskRunner, More, Outcome, evolve
from tests.conformance.flows import in_flow
from tests.integration.api import task_runs

STRATEGIES = ["as_completed", "async", "nested"]
NODES = 600
BROKEN, DEADLY = 133, 401

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


@cache
def links() -> dict[int, list[int]]:
    """A random tree: a node leads to one other in the mean, and each third to an earlier one."""
    random, found = Random(11), dict[int, list[int]]()
    for node in range(1, NODES):
        found.setdefault(random.randrange(max(0, node - 300), node), []).append(node)
    for node in range(0, NODES, 3):
        found.setdefault(node, []).append(random.randrange(node + 1))
    return found


LEAF = next(node for node in range(200, NODES) if not any(x > node for x in links().get(node, ())))


def to_node(node: int) -> list[int]:
    return [node]


@task
def to_node_as_task(node: int) -> list[int]:
    if node == BROKEN + 1:
        raise OSError("not to be opened")
    return [node]


@task
def visited(node: int) -> More:
    if node == BROKEN:
        raise ValueError("broken")
    return More(node, links().get(node, ()), stage=1)


@task
def visited_anew(node: int) -> More:
    if node == BROKEN:
        raise ValueError("broken")
    return More(node, links().get(node, ()), stage=0)


def reached(left_out: set[int]) -> set[int]:
    """What a plain walk comes to that goes no further from some nodes."""
    found, todo = {0}, [0]
    while todo:
        node = todo.pop()
        if node in left_out:
            continue
        for link in links().get(node, ()):
            if link not in found:
                found.add(link)
                todo.append(link)
    return found - left_out


@pytest.fixture
def runner(thread_workers: str) -> EvolveTaskRunner:
    return EvolveTaskRunner(address=thread_workers)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_items_of_many_short_lists_share_task_runs(strategy: str, runner: Any) -> None:
    ids: list[UUID] = []

    def body() -> Outcome:
        ids.append(UUID(flow_run.id))
        options: Any = {"strategy": strategy, "unique": True, "record": "batches"}
        return evolve([0], to_node, visited, on_failure="ignore", **options)

    outcome = in_flow(runner, body)
    assert set(outcome.results) == reached({BROKEN})
    assert len(outcome.results) == len(reached({BROKEN})) == outcome.counts.done
    assert [one.message for one in outcome.failures] == ["broken"]
    runs = task_runs(ids[0])
    assert len(runs) < NODES / 2
    # What failed is a task run of its own, and no other one says that it failed.
    failed = [run for run in runs if run.state_name == "Failed"]
    assert len(failed) == 1
    assert {run.state_name for run in runs} == {"Completed", "Failed"}
    assert any(" … " in run.name for run in runs)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_expanded_anew_shares_task_runs(strategy: str, runner: Any) -> None:
    ids: list[UUID] = []

    def body() -> Outcome:
        ids.append(UUID(flow_run.id))
        options: Any = {"strategy": strategy, "unique": True, "record": "batches"}
        return evolve([0], to_node_as_task, visited_anew, on_failure="ignore", **options)

    outcome = in_flow(runner, body)
    lost = {BROKEN, BROKEN + 1}
    assert set(outcome.results) == reached(lost)
    assert len(outcome.results) == len(reached(lost)) == outcome.counts.done
    assert sorted(one.stage for one in outcome.failures) == ["to_node_as_task", "visited_anew"]
    runs = task_runs(ids[0])
    assert len(runs) < NODES  # alone each of them would be two
    assert sum(run.state_name == "Failed" for run in runs) == 2
    assert {run.state_name for run in runs} == {"Completed", "Failed"}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", [0, 1])
def test_results_stand_in_the_order_of_their_paths(strategy: str, stage: int, runner: Any) -> None:
    def found(node: tuple[int, ...]) -> More:
        return More(node, [(*node, step) for step in range(2 * (len(node) < 8))], stage)

    def here(node: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [node]

    outcome = in_flow(runner, lambda: evolve([(0,)], here, found, strategy=strategy))
    assert len(outcome.results) == 2**8 - 1
    assert outcome.results == sorted(outcome.results)


class OneWay:
    """It travels to the flow, and from there nowhere."""

    def __init__(self, flow_pid: int, diary: str) -> None:
        self.flow_pid, self.diary = flow_pid, diary

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return one_way, (self.flow_pid, self.diary)


def one_way(flow_pid: int, diary: str) -> OneWay:
    arrived = Path(diary, "arrived")
    if os.getpid() == flow_pid:
        arrived.touch()
    elif arrived.exists():
        raise ImportError("it is not installed here")
    return OneWay(flow_pid, diary)


@task
def visited_where_it_is(item: Any) -> More:
    node, pid, diary = item
    Path(diary, f"{node}.{os.getpid()}.{os.urandom(4).hex()}").touch()
    if node == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)
    return More(node, [(link, pid, diary) for link in links().get(node, ())], stage=1)


@task
def visited_with_another(item: Any) -> More:
    node, pid, diary = item
    found = [(link, pid, diary) for link in links().get(node, ()) if link > node]
    return More(node, found or [OneWay(pid, diary)] if node == LEAF else found, stage=1)


@pytest.fixture(scope="module")
def mortal(prefect_api: str) -> Iterator[EvolveTaskRunner]:
    """Two worker processes, which are started again when they die."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield EvolveTaskRunner(cluster=cluster)


@pytest.mark.parametrize("strategy", ["as_completed", "async"])
def test_one_that_kills_its_worker_costs_itself_alone(
    strategy: str, mortal: Any, tmp_path: Path
) -> None:
    def body() -> Outcome:
        roots = [(0, os.getpid(), str(tmp_path))]
        options: Any = {"strategy": strategy, "unique": True, "on_failure": "ignore"}
        return evolve(roots, to_node, visited_where_it_is, key=first_of, **options)

    outcome = in_flow(mortal, body)
    (failure,) = outcome.failures
    assert failure.crashed
    assert set(outcome.results) == reached({DEADLY})
    assert len(outcome.results) == len(set(outcome.results))
    executions = Counter(int(path.name.split(".")[0]) for path in tmp_path.iterdir())
    assert executions[DEADLY] <= 3


def first_of(item: tuple[Any, ...]) -> Any:
    return item[0]


@pytest.mark.parametrize("strategy", ["as_completed", "async"])
def test_one_that_cannot_get_there_fails_alone(strategy: str, mortal: Any, tmp_path: Path) -> None:
    def body() -> Outcome:
        roots = [(0, os.getpid(), str(tmp_path))]
        return evolve(roots, to_node, visited_with_another, strategy=strategy, on_failure="ignore")

    outcome = in_flow(mortal, body)
    (failure,) = outcome.failures
    assert "it is not installed here" in failure.message
    assert set(outcome.results) == set(range(NODES))
    assert len(outcome.results) == NODES
