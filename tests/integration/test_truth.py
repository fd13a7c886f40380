"""What the API shows is what happened: compared with what the tasks themselves noted on disk."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import distributed
import pytest
from prefect import flow, task
from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext
from prefect.runtime import task_run
from prefect_dask import DaskTaskRunner

from evolve_tasks import EvolveTaskRunner, evolve
from tests.integration.api import task_runs

STRATEGIES = ["sequential", "as_completed", "async", "nested"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    """A folder in which each execution of a task leaves a file of its own."""
    return tmp_path


def note(diary: str, what: str) -> None:
    """Leave a trace of this execution that no other process can overwrite."""
    name = f"{what}-{task_run.id}-{os.getpid()}-{os.urandom(4).hex()}"
    Path(diary, name).touch()


@task
def parse(source: tuple[str, int, bool]) -> list[tuple[str, int]]:
    """Give as many items as the source says, or fail."""
    diary, size, good = source
    note(diary, "parse")
    if not good:
        raise ValueError("a bad source")
    return [(diary, i) for i in range(size)]


@task
def process(item: tuple[str, int]) -> int:
    """Fail for each tenth item."""
    diary, number = item
    note(diary, "process")
    if number % 10 == 9:
        raise ValueError("a tenth item")
    return number


SIZES = [(12, True), (0, True), (3, False), (5, True)]
ITEMS = 17
FAILED_ITEMS = 1


def run(runner: Any, diary: Path, **options: Any) -> UUID:
    """Run a flow; give its id. The API is asked only after it has ended."""
    seen: list[UUID] = []

    @flow(name="truth", task_runner=runner)
    def truth() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        seen.append(context.flow_run.id)
        sources = [(str(diary), size, good) for size, good in SIZES]
        evolve(sources, parse, process, on_failure="ignore", **options)

    truth()
    return seen[0]


def executions(diary: Path) -> Counter[str]:
    """How often each kind of task was executed."""
    return Counter(path.name.partition("-")[0] for path in diary.iterdir())


def inputs(task_run: TaskRun) -> set[UUID]:
    """Ids of the runs that a run got its input from."""
    return {
        UUID(str(value.id))
        for values in task_run.task_inputs.values()
        for value in values
        if value.input_type == "task_run"
    }


def check_graph(runs: list[TaskRun]) -> None:
    """Each process run hangs under the parse run of its source, and nothing is still open."""
    parses = {run.id: run for run in runs if run.name.startswith("parse[")}
    assert all(run.state is not None and run.state.is_final() for run in runs)
    assert all(run.start_time and run.end_time for run in runs)
    assert all(not inputs(run) for run in parses.values())
    for child in runs:
        if child.id in parses:
            continue
        (parent,) = inputs(child)
        label = child.name.removeprefix("process[").rpartition(" ")[0]
        assert parses[parent].name == f"parse[{label}]"
        assert "__parents__" not in child.task_inputs


@pytest.mark.parametrize("workers", ["thread", "process"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("record", ["items", "auto"])
def test_every_item_is_a_task_run(
    record: str, strategy: str, workers: str, diary: Path, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(f"{workers}_workers")
    flow_run_id = run(
        EvolveTaskRunner(address=address), diary, strategy=strategy, record=record, batch=2
    )
    runs = task_runs(flow_run_id)
    assert executions(diary) == {"parse": 4, "process": ITEMS}
    names = Counter(run.name.partition("[")[0] for run in runs)
    assert names == {"parse": 4, "process": ITEMS}
    states = Counter(run.state_name for run in runs)
    assert states == {"Completed": 3 + ITEMS - FAILED_ITEMS, "Failed": 1 + FAILED_ITEMS}
    # The id that a task saw is that of its record.
    noted = {path.name.partition("-")[2][:36] for path in diary.iterdir()}
    assert noted == {str(run.id) for run in runs}
    check_graph(runs)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sources_only(strategy: str, diary: Path, process_workers: str) -> None:
    flow_run_id = run(
        EvolveTaskRunner(address=process_workers), diary, strategy=strategy, record="sources"
    )
    runs = task_runs(flow_run_id)
    assert executions(diary) == {"parse": 4, "process": ITEMS}
    assert Counter(run.name.partition("[")[0] for run in runs) == {"parse": 4}
    check_graph(runs)


@pytest.mark.parametrize("options", [{"record_budget": 0}, {"record": "batches"}], ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_units_are_task_runs_and_failures_stand_alone(
    strategy: str, options: dict[str, Any], diary: Path, process_workers: str
) -> None:
    """Beyond the budget a unit is one task run, and whatever fails in it is one of its own."""
    runner = EvolveTaskRunner(address=process_workers)
    runs = task_runs(run(runner, diary, strategy=strategy, **options))
    assert executions(diary) == {"parse": 4, "process": ITEMS}
    assert all(run.state is not None and run.state.is_final() for run in runs)
    failed = sorted(run.name for run in runs if run.state_name == "Failed")
    assert [name.partition("[")[0] for name in failed] == ["parse", "process"]
    assert failed[1].endswith(" 9]")
    messages = {run.state.message for run in runs if run.state_name == "Failed" and run.state}
    assert {message.rpartition(": ")[2] for message in messages if message} == {
        "a bad source",
        "a tenth item",
    }
    completed = [run for run in runs if run.state_name == "Completed"]
    assert len(completed) + len(failed) == len(runs)
    # Every execution saw the task run that its logs go to, and the API has each of them: the
    # failed one where it was alone, or else that of its unit.
    noted = {path.name.partition("-")[2][:36] for path in diary.iterdir()}
    assert {str(run.id) for run in completed} <= noted <= {str(run.id) for run in runs}
    # A batch hangs under the unit that found its items.
    ids = {run.id for run in runs}
    for child in runs:
        assert inputs(child) <= ids
        if child.name.startswith("process["):
            assert inputs(child), child.name


@pytest.mark.parametrize("strategy", ["as_completed", "nested"])
def test_with_the_stock_runner(
    strategy: str, diary: Path, process_workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It takes any client of the process before its own, such as that of a worker in a thread.
    monkeypatch.setattr(distributed.client, "_global_clients", {})
    runner = DaskTaskRunner(address=process_workers)
    runs = task_runs(run(runner, diary, strategy=strategy))
    assert executions(diary) == {"parse": 4, "process": ITEMS}
    assert len(runs) == 4 + ITEMS
    check_graph(runs)


def test_seceding_leaks_no_parent(diary: Path) -> None:
    """The task after a nested run on the same thread is nobody's child."""
    cluster = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    seen: list[UUID] = []

    @task
    def bystander() -> None: ...

    @flow(task_runner=EvolveTaskRunner(cluster_kwargs=cluster))
    def both() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        seen.append(context.flow_run.id)
        evolve([(str(diary), 3, True)], parse, process, strategy="nested")
        bystander.submit().wait()
        evolve([(str(diary), 3, True)], parse, process, strategy="nested")
        bystander.submit().wait()

    both()
    runs = task_runs(seen[0])
    assert len(runs) == 10
    assert [run.task_inputs for run in runs if run.name.startswith("bystander")] == [{}, {}]
    check_graph([run for run in runs if not run.name.startswith("bystander")])


def test_sequential_sources_share_task_runs_beyond_the_budget(diary: Path) -> None:
    """A task run for each of very many sources is more than a server takes."""
    seen: list[UUID] = []

    @flow(name="shared-runs")
    def shared_runs() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        seen.append(context.flow_run.id)
        sources = ((str(diary), 10 if n % 100 == 7 else 1, n != 5) for n in range(400))
        outcome = evolve(
            sources,
            parse,
            process,
            strategy="sequential",
            record_budget=0,
            on_failure="ignore",
        )
        assert (outcome.counts.sources, outcome.counts.sources_failed) == (400, 1)
        assert (outcome.counts.done, outcome.counts.failed) == (431, 4)

    shared_runs()
    assert executions(diary) == Counter(parse=400, process=435)
    runs = task_runs(seen[0])
    assert all(run.state is not None and run.state.is_final() for run in runs)
    failed = [run.name for run in runs if run.state and run.state.is_failed()]
    assert Counter(name.partition("[")[0] for name in failed) == {"parse": 1, "process": 4}
    shared = {run.id for run in runs if run.name.startswith("parse[") and run.name.endswith(" …]")}
    assert 1 <= len(shared) <= 60
    assert all(inputs(run) <= shared for run in runs)
    assert all(inputs(run) for run in runs if run.name.startswith("process["))


def plain(source: tuple[str, int, bool]) -> list[tuple[str, int]]:
    diary, size, _ = source
    return [(diary, number) for number in range(size)]


@pytest.mark.parametrize("record", ["items", "batches"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_plain_function_is_nobodys_parent(
    strategy: str, record: Any, diary: Path, thread_workers: str
) -> None:
    seen: list[UUID] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def under_a_function() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        seen.append(context.flow_run.id)
        sources = [(str(diary), size, True) for size in (12, 3)]
        options: Any = {"record": record, "strategy": strategy, "on_failure": "ignore"}
        evolve(sources, plain, process, **options)

    under_a_function()
    runs = task_runs(seen[0])
    assert any(run.state is not None and run.state.is_failed() for run in runs)
    ids = {run.id for run in runs}
    assert all(inputs(run) <= ids for run in runs)
