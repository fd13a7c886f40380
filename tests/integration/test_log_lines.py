"""Log lines: those of user code are on the right task run, and those of ours are few."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Log, StateType
from prefect.runtime import flow_run

from evolve_tasks import EvolveTaskRunner, evolve
from tests.integration.api import task_runs
from tests.integration.waiting import until

STRATEGIES = ["sequential", "as_completed", "async", "nested"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

BAD = 5
SIZE = 8


@task
def eight(source: int) -> list[int]:
    get_run_logger().info("source %d", source)
    return list(range(SIZE))


@task(log_prints=True)
def talks(item: int) -> int:
    get_run_logger().info("logged %d", item)
    print("printed", item)  # noqa: T201  # it is what `log_prints` is about
    if item == BAD:
        raise ValueError("five is bad")
    return item


def lines_of(flow_run_id: UUID) -> list[Log]:
    with get_client(sync_client=True) as client:
        return client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])), limit=200
        )


@pytest.mark.parametrize("batch", [4, "auto"])
@pytest.mark.parametrize("record", ["items", "batches", "sources"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_lines_of_user_code_are_on_the_task_run_that_they_are_from(
    strategy: str, record: str, batch: Any, thread_workers: str
) -> None:
    ids: list[UUID] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> None:
        ids.append(UUID(flow_run.id))
        options: Any = {"strategy": strategy, "record": record, "batch": batch}
        evolve([0], eight, talks, on_failure="ignore", **options)

    night()
    (flow_run_id,) = ids

    def lines() -> dict[str, UUID | None]:
        found = [line for line in lines_of(flow_run_id) if re.match(r"\w+ \d$", line.message)]
        assert len(found) == len({line.message for line in found}), "a line twice"
        return {line.message: line.task_run_id for line in found}

    # Workers send them every two seconds.
    until(lambda: len(lines()) == 1 + 2 * SIZE, "all lines have come", 30)
    said = lines()
    runs = task_runs(flow_run_id)
    names = {one.id: one.name for one in runs}
    where = {message: names.get(run_id) if run_id else None for message, run_id in said.items()}
    for item in range(SIZE):
        own = where[f"logged {item}"]
        assert where[f"printed {item}"] == own
        if record == "items":
            assert own == f"talks[0 {item}]"
        elif record == "batches":
            assert own is not None, "it belongs to the batch, or to where it was worked on"
            first, last = _positions(own)
            assert first <= item <= last
        else:
            assert own in {None, "eight[0]"}
    if record != "sources":
        (failed,) = [one for one in runs if one.state_type == StateType.FAILED]
        assert failed.name == f"talks[0 {BAD}]"
        # It is logged after the lines of user code, and may come with the next ones.
        until(lambda: has_traceback(flow_run_id, failed.id), "its traceback has come", 30)


def has_traceback(flow_run_id: UUID, task_run_id: UUID) -> bool:
    told = [line.message for line in lines_of(flow_run_id) if line.task_run_id == task_run_id]
    return any("five is bad" in message and "Traceback" in message for message in told)


@task
def four(gates: str) -> list[tuple[str, int]]:
    return [(gates, number) for number in range(4)]


@task(log_prints=True)
def in_turn(item: tuple[str, int]) -> None:
    """On three threads: the first ends while the second is at work, which prints after that."""
    gates, number = item
    if number == 0:
        until(Path(gates, "1").exists, "the second has begun beside the first")
    Path(gates, str(number)).touch()
    if number == 1:
        until(Path(gates, "3").exists, "the fourth has the thread of the first")
        print("printed", number)  # noqa: T201  # it is what `log_prints` is about
        Path(gates, "printed").touch()
    if number == 2:
        until(Path(gates, "printed").exists, "the second has printed")


@pytest.mark.parametrize("retries", [0, 1], ids=["plain", "in Prefect's engine"])
def test_a_print_is_heard_though_another_run_ended_meanwhile(
    retries: int, thread_workers: str, tmp_path: Path
) -> None:
    ids: list[UUID] = []

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night() -> None:
        ids.append(UUID(flow_run.id))
        stage = in_turn.with_options(retries=retries)
        evolve([str(tmp_path)], four, stage, strategy="as_completed", record="items", batch=1)

    night()
    until(
        lambda: "printed 1" in [line.message for line in lines_of(ids[0])], "the print is heard", 30
    )


def _positions(name: str) -> tuple[int, int]:
    """First and last item of a batch, by its name; all of them for the parse of a short list."""
    if name.startswith("eight["):
        return 0, SIZE - 1
    found = re.fullmatch(r"talks\[0 (\d+)(?:-(\d+))?\]", name)
    assert found is not None, name
    return int(found[1]), int(found[2] or found[1])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_says_little(
    strategy: str, thread_workers: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A few lines at INFO, however much there is to do."""

    @flow(task_runner=EvolveTaskRunner(address=thread_workers))
    def night(sources: int) -> None:
        options: Any = {"strategy": strategy, "record": "batches"}
        evolve(list(range(sources)), many, silent, **options)

    numbers = []
    with caplog.at_level(logging.INFO, logger="prefect.flow_runs"):
        for sources in (1, 40):
            caplog.clear()
            night(sources)
            said = [one for one in caplog.records if one.name == "prefect.flow_runs"]
            numbers.append(Counter(one.levelname for one in said))
            assert all(one.levelno <= logging.INFO for one in said)
    assert numbers[0] == numbers[1]
    assert numbers[0].total() <= 6


@task
def many(_: int) -> list[int]:
    return list(range(50))


@task
def silent(item: int) -> int:
    return item
