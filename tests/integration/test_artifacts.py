"""What the artifacts of a run say while it is under way, and what they say at its end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from distributed import Scheduler
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.runtime import flow_run, task_run

from evolve_tasks import EvolveFailed, EvolveTaskRunner, Outcome, evolve
from tests.integration.api import artifacts, progress_of, report_of, task_runs
from tests.integration.waiting import until

STRATEGIES = ["sequential", "as_completed", "async", "nested"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


@task
def numbers(source: tuple[str, int]) -> list[tuple[str, int]]:
    gate, size = source
    return [(gate, number) for number in range(size)]


@task
def passes(item: tuple[str, int]) -> int:
    """The second half of the items waits for a file."""
    gate, number = item
    if number >= 5:
        until(Path(gate).exists, "the gate is opened")
    return number


@task
def odd_ones_fail(item: tuple[str, int]) -> int:
    if item[1] % 2:
        raise ValueError(f"{item[1]} is odd")
    return item[1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_progress_rises_and_the_report_is_whole(
    strategy: str, tmp_path: Path, thread_workers: str
) -> None:
    gate = tmp_path / "gate"
    seen: list[tuple[float, str]] = []
    flow_run_ids: list[UUID] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> Outcome:
        flow_run_ids.append(UUID(flow_run.id))
        return evolve([(str(gate), 10)] * 3, numbers, passes, strategy=strategy, batch=1)

    def half_way() -> bool:
        if not flow_run_ids or not artifacts(flow_run_ids[0], "progress"):
            return False
        seen.append(progress_of(flow_run_ids[0]))
        return seen[-1][0] > 0

    def watch() -> None:
        try:
            until(half_way, "progress is shown")
        finally:
            gate.touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcome = night()
    watcher.join()
    assert outcome.results == list(range(10)) * 3
    shares = [percent for percent, _ in seen]
    assert shares == sorted(shares)
    assert 0 < shares[-1] < 100
    assert "after" not in seen[-1][1]
    percent, words = progress_of(flow_run_ids[0])
    assert percent == 100
    assert words.startswith("**30 of 30 items done** · 3 of 3 sources")
    assert "finished after" in words
    report = report_of(flow_run_ids[0])
    assert report == outcome.report.markdown()
    assert report.startswith("# Finished after")
    assert "data:image/svg+xml;base64," in report
    assert "33 task runs" in report
    assert outcome.report["timeline"]["threads"] >= 1
    assert outcome.report["units"]["passes"]["items"] == 30


@pytest.mark.parametrize("record", ["items", "batches", "sources"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_failures_lead_to_their_task_runs(
    strategy: str, record: str, tmp_path: Path, thread_workers: str
) -> None:
    flow_run_ids: list[UUID] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> None:
        flow_run_ids.append(UUID(flow_run.id))
        sources = [(str(tmp_path), 4)] * 2
        evolve(sources, numbers, odd_ones_fail, strategy=strategy, record=record)  # type: ignore[misc]

    with pytest.raises(EvolveFailed) as raised:
        night()
    report = raised.value.outcome.report
    assert progress_of(flow_run_ids[0])[0] == 100
    assert "failed after" in progress_of(flow_run_ids[0])[1]
    assert report_of(flow_run_ids[0]) == report.markdown()
    (group,) = report["failure_groups"]
    assert (group["error_type"], group["count"]) == ("ValueError", 4)
    assert len(report["failures"]) == 4
    failed = {
        str(one.id) for one in task_runs(flow_run_ids[0]) if one.state_type == StateType.FAILED
    }
    linked = {example["task_run"] for example in group["examples"]}
    assert linked <= (failed if record != "sources" else {None})


def test_a_run_inside_a_task_belongs_to_it(tmp_path: Path, thread_workers: str) -> None:
    @task
    def part() -> tuple[str, str]:
        evolve([(str(tmp_path), 2)], numbers, odd_ones_fail, on_failure="ignore")
        return str(flow_run.id), str(task_run.id)

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> tuple[str, str]:
        return part.submit().result()

    flow_run_id, task_run_id = night()
    (report,) = artifacts(UUID(flow_run_id), "markdown")
    assert str(report.task_run_id) == task_run_id


def test_without_progress_there_is_the_report_alone(tmp_path: Path, thread_workers: str) -> None:
    ids: list[UUID] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> None:
        ids.append(UUID(flow_run.id))
        evolve([(str(tmp_path), 4)], numbers, passes, progress=False)

    night()
    assert artifacts(ids[0], "progress") == []
    assert report_of(ids[0]).startswith("# Finished after")


@task
def alone(of: tuple[str, int]) -> list[tuple[str, int]]:
    return [of]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_label_names_sources_and_items(
    strategy: str, tmp_path: Path, thread_workers: str
) -> None:
    ids: list[UUID] = []

    def label(of: tuple[str, int]) -> str:
        if of[1] == 1:
            raise KeyError("no name for it")
        return f"number\n{of[1]}"

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> None:
        ids.append(UUID(flow_run.id))
        options: Any = {"strategy": strategy, "record": "items", "label": label}
        evolve([(str(tmp_path), 3)], numbers, passes, **options)
        evolve([(str(tmp_path), 2)], numbers, alone, passes, **options)

    night()
    assert {one.name for one in task_runs(ids[0])} == {
        "numbers[number 2]",
        "alone[number 2 number 0]",
        "alone[number 2 label raised KeyError]",
        "passes[number 2 0 number 0]",
        "passes[number 2 1 label raised KeyError]",
        "numbers[number 3]",
        "passes[number 3 number 0]",
        "passes[number 3 label raised KeyError]",
        "passes[number 3 number 2]",
    }


def events_of(flow_run_id: UUID) -> list[dict[str, Any]]:
    """Events of evolve-tasks that are related to a flow run, oldest first."""
    question = {
        "filter": {
            "event": {"prefix": ["evolve."]},
            "related": {"id": [f"prefect.flow-run.{flow_run_id}"]},
            "order": "ASC",
        }
    }
    with get_client(sync_client=True) as client:
        events = client.request("POST", "/events/filter", json=question).json()["events"]
    assert isinstance(events, list)
    return events


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_events_tell_automations_what_happened(
    strategy: str, tmp_path: Path, thread_workers: str
) -> None:
    ids: list[UUID] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> None:
        ids.append(UUID(flow_run.id))
        sources = [(str(tmp_path), 4)] * 25
        evolve(sources, numbers, odd_ones_fail, strategy=strategy, record_budget=10, batch=4)

    with pytest.raises(EvolveFailed):
        night()
    until(lambda: "evolve.run.finished" in [e["event"] for e in events_of(ids[0])], "all is told")
    events = events_of(ids[0])
    names = [event["event"] for event in events]
    assert names[0] == "evolve.run.started"
    assert names[-2:] == ["evolve.failures.exceeded", "evolve.run.finished"]
    assert names.count("evolve.run.degraded") == 1
    assert names.count("evolve.source.expanded") == 20
    payloads = {event["event"]: event["payload"] for event in events}
    assert payloads["evolve.run.started"]["stages"] == ["numbers", "odd_ones_fail"]
    assert payloads["evolve.source.expanded"]["items"] == 4
    assert payloads["evolve.run.finished"]["state"] == "failed"
    counts = payloads["evolve.run.finished"]["counts"]
    assert (counts["done"], counts["failed"]) == (50, 50)
    assert len({event["resource"]["prefect.resource.id"] for event in events}) == 1


def prefixes(dask_scheduler: Scheduler) -> list[str]:
    """By which the dashboard groups tasks."""
    return list(dask_scheduler.task_prefixes)


def test_dask_has_its_part_in_the_report(tmp_path: Path) -> None:
    """Its dashboard is linked, its own report is written, and it groups tasks by their stage."""
    page = tmp_path / "dask.html"
    ids: list[UUID] = []
    groups: list[str] = []
    links: list[str] = []
    cluster = {"n_workers": 1, "processes": False, "dashboard_address": "127.0.0.1:0"}
    runner = EvolveTaskRunner(cluster_kwargs=cluster, performance_report_path=str(page))

    @flow(task_runner=runner)
    def night() -> None:
        ids.append(UUID(flow_run.id))
        evolve([(str(tmp_path), 4)], numbers, passes, strategy="as_completed", batch=1)
        context: Any = FlowRunContext.get()
        client = context.task_runner.client
        links.append(client.dashboard_link)
        groups.extend(client.run_on_scheduler(prefixes))

    night()
    assert links[0].endswith("/status")
    assert f"]({links[0]})" in report_of(ids[0])
    assert "<html" in page.read_text().lower()
    assert {"numbers", "passes"} <= set(groups)
