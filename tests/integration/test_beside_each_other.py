"""What goes on at the same time in one process, or in one flow run, leaves the other alone."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from distributed import get_worker
from prefect import flow, task
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run

from evolve_tasks import EvolveFailed, EvolveTaskRunner, aevolve, evolve
from tests.integration.api import task_runs
from tests.integration.test_clusters import IN_PROCESS
from tests.integration.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

SMALL = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}


@task
def one(source: tuple[str, str]) -> list[tuple[str, str]]:
    return [source]


@task
def acts(item: tuple[str, str]) -> str:
    """Wait until somebody says so, or kill the worker, for once."""
    folder, does = Path(item[0]), item[1]
    if does == "waits":
        (folder / "waits").touch()
        until((folder / "go").exists, "somebody lets it go")
    elif does == "kills" and not (folder / "dead").exists():
        (folder / "dead").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif does == "fails":
        until((folder / "waits").exists, "the other one is under way")
        raise ValueError("it fails")
    return does


def state_types(flow_run_id: UUID, name: str) -> list[StateType | None]:
    return [run.state_type for run in task_runs(flow_run_id) if run.name.startswith(name)]


def test_a_dead_worker_of_one_ends_no_task_run_of_the_other(tmp_path: Path) -> None:
    ids: list[UUID] = []
    options: Any = {"strategy": "as_completed", "record": "items"}

    @flow(task_runner=EvolveTaskRunner(cluster_kwargs=SMALL))
    async def both() -> list[str]:
        ids.append(UUID(flow_run.id))
        waits = asyncio.create_task(aevolve([(str(tmp_path), "waits")], one, acts, **options))
        shown = [StateType.RUNNING]
        await asyncio.to_thread(
            until, lambda: state_types(ids[0], "acts[") == shown, "the API knows that it runs"
        )
        kills = await aevolve([(str(tmp_path), "kills")], one, acts, **options)
        states = await asyncio.to_thread(state_types, ids[0], "acts[")
        assert sorted(map(str, states)) == sorted(["StateType.COMPLETED", "StateType.RUNNING"])
        (tmp_path / "go").touch()
        return kills.results + (await waits).results

    assert asyncio.run(both()) == ["kills", "waits"]
    assert (tmp_path / "dead").exists()
    assert set(state_types(ids[0], "")) == {StateType.COMPLETED}


def test_one_that_fails_leaves_nothing_of_the_other_running(tmp_path: Path) -> None:
    ids: list[UUID] = []
    options: Any = {"strategy": "as_completed", "record": "items"}

    @flow(task_runner=EvolveTaskRunner(cluster_kwargs=SMALL))
    async def both() -> None:
        ids.append(UUID(flow_run.id))
        await asyncio.gather(
            aevolve([(str(tmp_path), "waits")], one, acts, **options),
            aevolve([(str(tmp_path), "fails")], one, acts, **options),
        )

    with pytest.raises(EvolveFailed, match="it fails"):
        asyncio.run(both())
    open_types = {StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED}
    assert not open_types & set(state_types(ids[0], ""))


meeting: threading.Barrier


def where(_: Any) -> str:
    return str(get_worker().scheduler.address)


def test_two_flows_in_one_process_have_a_cluster_each() -> None:
    global meeting
    meeting = threading.Barrier(2, timeout=60)

    def run() -> set[str]:
        seen: set[str] = set()

        @flow(task_runner=EvolveTaskRunner())
        def whatever() -> None:
            seen.update(evolve([1], range, where).results)

        @flow(task_runner=EvolveTaskRunner(cluster_kwargs=dict(IN_PROCESS)))
        def around() -> None:
            seen.update(evolve([1], range, where).results)
            meeting.wait()  # both have a cluster, and one of the two clients is the default
            whatever()  # inside it: on its cluster
            meeting.wait()

        around()
        return seen

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(copy_context().run, run), threads.submit(run)
    assert len(first.result()) == len(second.result()) == 1
    assert first.result().isdisjoint(second.result())
