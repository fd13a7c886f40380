"""Times, attempts, names and parents in the API, also where items are recorded by the batch."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, tags, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.runtime import flow_run

from evolve_tasks import EvolveTaskRunner, More, Outcome, evolve
from tests.integration.api import task_runs

STRATEGIES = ["sequential", "as_completed", "async", "nested"]
RECORDS = ["items", "batches", "sources", "auto"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


def in_flow(
    runner: EvolveTaskRunner, *stages: Any, **options: Any
) -> tuple[Outcome, list[TaskRun]]:
    """What a flow's only `evolve` gave, and the task runs of it."""
    seen: list[UUID] = []

    @flow(task_runner=runner)
    def night() -> Outcome:
        seen.append(UUID(flow_run.id))
        return evolve(*stages, on_failure="ignore", **options)

    return night(), task_runs(seen[0])


def parents(run: TaskRun) -> set[UUID]:
    """Ids of the runs that it names as those that it got its input from."""
    return {
        UUID(str(value.id))
        for values in run.task_inputs.values()
        for value in values
        if value.input_type == "task_run"
    }


@task
def count_to(source: tuple[str, int]) -> list[tuple[str, int]]:
    folder, size = source
    return [(folder, number) for number in range(size)]


@task(retries=1, task_run_name="check {item[1]}", tags=["checks"])
def check(item: tuple[str, int]) -> int:
    """Fail for the third one, and write down when."""
    folder, number = item
    if number == 3:
        with Path(folder, "attempts").open("a") as lines:
            lines.write(f"{time.time()}\n")
        raise ValueError("the third")
    return number


@pytest.mark.parametrize("record", ["items", "batches"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_failed_item_of_a_batch_has_its_own_times_name_and_attempts(
    strategy: str, record: str, tmp_path: Path, thread_workers: str
) -> None:
    outcome, runs = in_flow(
        EvolveTaskRunner(address=thread_workers),
        [(str(tmp_path), 6)],
        count_to,
        check,
        strategy=strategy,
        record=record,
        batch=6,
    )
    assert outcome.results == [0, 1, 2, 4, 5]
    assert [failure.attempts for failure in outcome.failures] == [2]
    (failed,) = [run for run in runs if run.state_name == "Failed"]
    first, last = map(float, Path(tmp_path, "attempts").read_text().split())
    assert failed.name == "check 3"
    assert failed.run_count == 2
    assert failed.tags == ["checks"]
    assert failed.start_time is not None
    assert failed.end_time is not None
    assert failed.start_time <= datetime.fromtimestamp(first, UTC)
    assert failed.end_time >= datetime.fromtimestamp(last, UTC)
    assert (failed.end_time - failed.start_time).total_seconds() < last - first + 1


@pytest.mark.parametrize("record", ["batches", "auto"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_batch_of_one_that_fails_is_one_task_run(
    strategy: str, record: str, tmp_path: Path, thread_workers: str
) -> None:
    outcome, runs = in_flow(
        EvolveTaskRunner(address=thread_workers),
        [(str(tmp_path), 5)],
        count_to,
        check,
        strategy=strategy,
        record=record,
        record_budget=0,
        batch=1,
    )
    assert outcome.results == [0, 1, 2, 4]
    states = sorted((run.name, run.state_name) for run in runs if run.name.startswith("check"))
    assert states == [(f"check {n}", "Failed" if n == 3 else "Completed") for n in range(5)]
    (failed,) = [run for run in runs if run.state_name == "Failed"]
    assert (failed.run_count, failed.tags) == (2, ["checks"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batches_have_the_tags_of_their_task(
    strategy: str, tmp_path: Path, thread_workers: str
) -> None:
    with tags("night"):
        _, runs = in_flow(
            EvolveTaskRunner(address=thread_workers),
            [(str(tmp_path), 3)],
            count_to,
            tagged,
            strategy=strategy,
            record="batches",
            batch=3,
        )
    found = {run.name.partition("[")[0]: set(run.tags) for run in runs}
    assert found == {"count_to": {"night"}, "tagged": {"night", "checks"}}


@task(tags=["checks"])
def tagged(item: tuple[str, int]) -> int:
    return item[1]


@task(tags=["one at a time"])
def alone(item: tuple[str, int]) -> int:
    """Fail where two run at the same time."""
    busy = Path(item[0], "busy")
    busy.touch(exist_ok=False)
    time.sleep(0.05)
    busy.unlink()
    return item[1]


@pytest.mark.parametrize("record", ["items", "batches"])
def test_a_tag_that_is_a_limit_holds(record: str, tmp_path: Path, thread_workers: str) -> None:
    with get_client(sync_client=True) as client:
        client.create_concurrency_limit(tag="one at a time", concurrency_limit=1)
        try:
            outcome, runs = in_flow(
                EvolveTaskRunner(address=thread_workers),
                [(str(tmp_path), 6)],
                count_to,
                alone,
                record=record,
                batch=2,
            )
        finally:
            client.delete_concurrency_limit_by_tag("one at a time")
    assert outcome.results == list(range(6)), outcome.failures
    own = {tuple(run.tags) for run in runs if run.name.startswith("alone")}
    assert own == ({("one at a time",)} if record == "items" else {()})


def numbered(name: str) -> str:
    raise LookupError(f"no name for {name}")


@task(task_run_name=lambda: numbered("this"))
def fails(item: tuple[str, int]) -> int:
    raise ValueError(f"item {item[1]}")


def test_a_function_that_gives_no_name_does_not_hide_the_failure(
    tmp_path: Path, thread_workers: str
) -> None:
    outcome, runs = in_flow(
        EvolveTaskRunner(address=thread_workers),
        [(str(tmp_path), 2)],
        count_to,
        fails,
        record="batches",
        batch=2,
    )
    assert [failure.message for failure in outcome.failures] == ["item 0", "item 1"]
    names = [run.name for run in runs if run.state_name == "Failed"]
    assert len(names) == 2
    assert all(name.startswith("fails[") for name in names), names


@task(persist_result=True, result_storage_key="{parameters[nothing]}")
def unbegun(item: tuple[str, int]) -> int:
    return item[1]


def test_what_cannot_begin_is_a_failed_task_run(tmp_path: Path, thread_workers: str) -> None:
    outcome, runs = in_flow(
        EvolveTaskRunner(address=thread_workers),
        [(str(tmp_path), 2)],
        count_to,
        unbegun,
        record="items",
    )
    assert len(outcome.failures) == 2
    states = [run.state_name for run in runs if run.name.startswith("unbegun")]
    assert states == ["Failed"] * 2


@task
def refused(item: tuple[str, int]) -> Any:
    """Give what cannot travel, which is noticed after the whole batch."""
    return (lambda: threading.Lock()) if item[1] else threading.Lock()


def test_what_is_refused_afterwards_has_its_times(tmp_path: Path, thread_workers: str) -> None:
    before = datetime.now(UTC)
    outcome, runs = in_flow(
        EvolveTaskRunner(address=thread_workers),
        [(str(tmp_path), 2)],
        count_to,
        refused,
        record="batches",
        batch=2,
    )
    assert [failure.error_type for failure in outcome.failures] == ["Unpicklable"]
    (failed,) = [run for run in runs if run.state_name == "Failed"]
    assert failed.start_time is not None
    assert failed.end_time is not None
    assert before <= failed.start_time <= failed.end_time <= datetime.now(UTC)


@task
def spread(source: int) -> list[int]:
    return [source * 10 + number for number in range(3)]


@task
def grow(item: int) -> int | More:
    """What is below ten leads to what is above, and one of these fails."""
    if item == 21:
        raise ValueError("no more of this")
    return More(item, items=[item + 20, item + 30], stage=1) if item < 10 else item


@task
def total(source: int, results: list[int], failures: list[Any]) -> int:
    return sum(results)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_parent_that_is_named_exists(strategy: str, record: str, thread_workers: str) -> None:
    outcome, runs = in_flow(
        EvolveTaskRunner(address=thread_workers),
        range(6),
        spread,
        grow,
        strategy=strategy,
        record=record,
        record_budget=12,  # "auto" begins with single runs, and changes over
        batch=2,
        collect=total,
    )
    assert len(outcome.results) == 6 * 3 + 2 * 3 - 2  # 21 is met twice
    assert len(outcome.collected) == 6
    known = {run.id: run for run in runs}
    assert all(run.state is not None and run.state.is_final() for run in runs)
    dangling = {
        run.name: parents(run) - known.keys() for run in runs if parents(run) - known.keys()
    }
    assert not dangling
    if record == "items":
        named = {run.name: {known[one].name for one in parents(run)} for run in runs}
        assert named["grow[0 1]"] == {"spread[0]"}
        assert named["grow[0 1 0]"] == {"grow[0 1]"}
        assert named["total[0]"] == {"spread[0]"}
