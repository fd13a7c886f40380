"""What people see of a run costs the API little, however many items there are."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from evolve_tasks import EvolveOptions, EvolveTaskRunner, evolve
from tests.integration.api import artifacts
from tests.integration.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

SOURCES, ITEMS = 100, 1_000
MOST_CALLS = 200
LARGEST_REPORT = 200_000  # characters
OWN_EVENTS = 60  # of the run and its sources, and of the flow run


@task
def thousand(source: int) -> list[int]:
    return list(range(source, source + ITEMS))


@task
def trivial(item: int) -> int:
    return item


@task(tags=["etl"])
def tagged(item: int) -> int:
    return item


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts all requests of this process, in which the flow and the workers are."""
    counted: Counter[str] = Counter()

    def note(request: httpx.Request) -> None:
        counted[f"{request.method} {request.url.path.rsplit('/api', 1)[-1]}"] += 1

    send, send_async = httpx.Client.send, httpx.AsyncClient.send

    def sending(client: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        note(request)
        return send(client, request, **more)

    async def sending_async(
        client: httpx.AsyncClient, request: httpx.Request, **more: Any
    ) -> httpx.Response:
        note(request)
        return await send_async(client, request, **more)

    monkeypatch.setattr(httpx.Client, "send", sending)
    monkeypatch.setattr(httpx.AsyncClient, "send", sending_async)
    return counted


def events_of(flow_run_id: UUID) -> int:
    """How many events the API has of a flow run, its task runs included."""
    wanted = {"filter": {"related": {"id": [f"prefect.flow-run.{flow_run_id}"]}}}
    with get_client(sync_client=True) as client:
        return int(client.request("POST", "/events/filter", json=wanted).json()["total"])


def task_runs_of(flow_run_id: UUID) -> int:
    wanted = {"flow_runs": {"id": {"any_": [str(flow_run_id)]}}}
    with get_client(sync_client=True) as client:
        return int(client.request("POST", "/task_runs/count", json=wanted).json())


@pytest.mark.parametrize("strategy", ["sequential", "as_completed", "async", "nested"])
def test_a_hundred_thousand_items_cost_two_hundred_calls_and_the_budget(
    strategy: str, thread_workers: str, calls: Counter[str]
) -> None:
    ids: list[UUID] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> int:
        ids.append(UUID(flow_run.id))
        calls.clear()
        options: Any = {"strategy": strategy}
        return len(evolve(range(SOURCES), thousand, trivial, **options).results)

    assert night() == SOURCES * ITEMS
    asked = Counter(calls)
    assert 0 < asked.total() <= MOST_CALLS, asked
    (report,) = artifacts(ids[0], "markdown")
    assert len(str(report.data)) < LARGEST_REPORT
    runs = task_runs_of(ids[0])
    assert 0 < runs <= EvolveOptions().record_budget
    # Of each task run that it has ended, and of long ones that they run.
    until(lambda: events_of(ids[0]) >= runs, "events are there")
    assert events_of(ids[0]) <= 2 * runs + OWN_EVENTS


def test_tags_that_limit_nothing_cost_no_calls(thread_workers: str, calls: Counter[str]) -> None:
    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> int:
        calls.clear()
        return len(evolve(range(5), thousand, tagged).results)

    assert night() == 5 * ITEMS
    asked = Counter(calls)
    assert 0 < asked.total() <= MOST_CALLS, asked
