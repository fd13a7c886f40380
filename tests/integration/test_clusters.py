"""Which cluster a runner uses, whatever other clients there are in the process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from distributed import Client, LocalCluster, get_client, get_worker
from prefect import flow, task

from evolve_tasks import EvolveTaskRunner, evolve

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

IN_PROCESS = {
    "n_workers": 1,
    "threads_per_worker": 1,
    "processes": False,
    "dashboard_address": None,
}


@pytest.fixture(scope="module")
def other() -> Iterator[LocalCluster]:
    """A cluster that a runner must not use unless it has nothing else to go by."""
    with LocalCluster(**IN_PROCESS) as cluster:
        yield cluster


def where(_: Any) -> str:
    return str(get_worker().scheduler.address)


submitted = task(where)


def used_by(runner: Any) -> set[str]:
    """The schedulers on which a flow's work runs, submitted and evolved."""
    seen: list[str] = []

    @flow(task_runner=runner)
    def around() -> None:
        seen.append(submitted.submit(0).result())
        seen.extend(evolve([1], range, where).results)

    around()
    return set(seen)


def test_a_cluster_that_was_asked_for_is_not_replaced_by_a_default_client(
    other: LocalCluster, thread_workers: str
) -> None:
    with Client(other, set_as_default=True):
        own = used_by(EvolveTaskRunner(cluster_kwargs=IN_PROCESS))
        assert own.isdisjoint({other.scheduler_address, thread_workers})
        assert used_by(EvolveTaskRunner(address=thread_workers)) == {thread_workers}
        with LocalCluster(**IN_PROCESS) as third:
            assert used_by(EvolveTaskRunner(cluster=third)) == {third.scheduler_address}


def test_a_default_client_of_the_users_is_used_where_nothing_was_asked_for(
    other: LocalCluster,
) -> None:
    with Client(other, set_as_default=True):
        assert used_by(EvolveTaskRunner()) == {other.scheduler_address}


def test_the_client_of_a_worker_in_this_process_is_nobodys_default(other: LocalCluster) -> None:
    with Client(other, set_as_default=False) as client:
        left = client.submit(lambda: get_client().id, pure=False).result()
        with Client.current() as default:
            assert default.id == left, "the worker's client is the default by now"
            assert other.scheduler_address not in used_by(EvolveTaskRunner())
