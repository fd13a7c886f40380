"""What cannot be made in another process than the one that it comes from costs itself alone."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from distributed import Client, LocalCluster
from prefect import flow, task
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.utilities.engine import emit_task_run_state_change_event

from evolve_tasks import EvolveFailed, EvolveTaskRunner, More, Outcome, evolve
from evolve_tasks.monitoring.crashes import record_given_up
from evolve_tasks.monitoring.recording import FAILED, wait_until_recorded
from evolve_tasks.workers.calls import GivenUp
from evolve_tasks.workers.task_runs import enter_state, new_task_run
from tests.integration.api import task_runs
from tests.integration.dask_processes import DaskProcess

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]

ITEMS = 30
HEAVY = b"x" * 20_000  # so that parts of the list travel, and not all of it
DONE = [item for item in range(ITEMS) if item % 3 != 1]
LOST = [item for item in range(ITEMS) if item % 3 == 1]
LATE = 1_000
SOURCES = ["plain", "at home", "heavy"]


def made_at_home(pid: int) -> AtHome:
    """Unpickle one, in the process that it comes from alone."""
    if os.getpid() != pid:
        raise OSError("the file it stands for is elsewhere")
    return AtHome()


class AtHome:
    """Something that is bound to its process."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return made_at_home, (os.getpid(),)


def found(source: str) -> list[Any]:
    return {
        "plain": [*range(ITEMS)],
        "at home": [AtHome() if item in LOST else item for item in range(ITEMS)],
        "heavy": [(HEAVY, AtHome() if item in LOST else item) for item in range(ITEMS)],
    }[source]


def streamed(source: str) -> Iterator[Any]:
    """So slowly that its items are sent on while it finds more: by way of the flow."""
    for item in found(source):
        time.sleep(0.02)
        yield item


def doubled(item: Any) -> list[Any]:
    return [item, item]


def how_many(item: Any, results: list[Any], failures: list[Any]) -> tuple[int, int]:
    assert isinstance(item, int | tuple)
    return len(results), len(failures)


def type_of(one: Any) -> str:
    assert isinstance(one, str | int | tuple)
    return type(one).__name__


def seen(item: Any) -> Any:
    return item[1] if isinstance(item, tuple) else item


def numbered(source: str) -> list[int]:
    return [*range(ITEMS)] if source in SOURCES else []


def brought(item: int) -> Any:
    return AtHome() if item in LOST else item


def brought_whole(item: int) -> int:
    return item


def led_further(item: int) -> Any:
    return More(brought(item), [ITEMS], stage=1) if item == LOST[-1] else brought(item)


def locked() -> Any:
    return threading.Lock()


class Locked:
    """Something that can be pickled, and what comes of that cannot be."""

    def __reduce__(self) -> tuple[Any, ...]:
        return locked, ()


def led_to_locks(item: Any) -> Any:
    return More(item, [Locked(), 7], stage=1) if item == 0 else item


def completed_with_a_lock(item: int) -> Any:
    return Completed(data=threading.Lock() if item in LOST else item)


class Once:
    """Something that can be pickled once."""

    gone = False

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self.gone:
            raise OSError("it went before")
        self.gone = True
        return Once, ()


def going_once(item: int) -> Any:
    return Once() if item in LOST else item


def two_of(source: str) -> list[int]:
    return [int(source.split()[-1])] * 2


def lost_if_late_and_odd(number: int) -> Any:
    return More(AtHome(), [0], stage=1) if number > LATE and number % 2 else 0


def once_if_late(number: int) -> Any:
    return Once() if number > LATE else number


def once_found_if_late(number: int) -> Any:
    return More(number, [Once()], stage=1) if number > LATE else number


def bound_to_its_process(source: str, results: list[Any]) -> AtHome:
    return AtHome()


def at_home_in_the_end(one: Any, other: Any) -> AtHome:
    return AtHome()


def require_failed(
    flow_run_id: UUID, outcome: Outcome, stage: str, why: str = "is elsewhere"
) -> None:
    """Each failure is a Failed task run that says why, and the report leads there."""
    runs = task_runs(flow_run_id)
    assert all(one.state is not None and one.state.is_final() for one in runs)
    failed = {str(one.id): one for one in runs if one.state_name == "Failed"}
    assert len(failed) == len(outcome.failures)
    for one in failed.values():
        assert one.name.startswith(f"{stage}[")
        assert one.state is not None
        assert why in (one.state.message or "")
        assert one.start_time is not None
        assert one.end_time is not None
    recording = outcome.report["recording"]
    assert recording["unrecorded"] == 0
    assert recording["task_runs"] == len(runs)
    shown = [example for group in outcome.report["failure_groups"] for example in group["examples"]]
    assert shown
    assert all(example["task_run"] in failed for example in shown)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler with a worker that reads and another one that works."""
    home = tmp_path_factory.mktemp("apart")
    with LocalCluster(n_workers=0, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        with (
            DaskProcess(home / "one", "worker", address, "--resources", "READS=1"),
            DaskProcess(home / "other", "worker", address, "--resources", "WORKS=1"),
        ):
            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=60)
            yield address


def run(address: str, *stages: Callable[..., Any], **options: Any) -> tuple[UUID, Outcome]:
    """Read on one worker, work on the other; failures are no error."""
    first, *others = [stage.__name__ for stage in stages]
    given = {
        "sources": SOURCES,
        "resources": {first: {"READS": 1}, **{name: {"WORKS": 1} for name in others}},
        "on_failure": "ignore",
    }
    given |= options
    ended: list[tuple[UUID, Outcome]] = []

    @flow(task_runner=EvolveTaskRunner(address=address))
    def around() -> None:
        outcome = evolve(given.pop("sources"), *map(task, stages), **given)
        ended.append((UUID(flow_run.id), outcome))

    around()
    return ended[0]


STRATEGIES: list[tuple[str, Any, str]] = [
    ("as_completed", "auto", "batches"),
    ("async", 1, "items"),
    ("nested", 7, "items"),
]


@pytest.mark.parametrize(("strategy", "batch", "record"), STRATEGIES)
def test_items(apart: str, strategy: str, batch: Any, record: str) -> None:
    """Dask would ask for them again and again."""
    flow_run_id, outcome = run(apart, found, seen, strategy=strategy, batch=batch, record=record)
    assert outcome.results == [*range(ITEMS), *DONE, *DONE]
    lost = [(source, item) for source in (1, 2) for item in LOST]
    assert [failure.index for failure in outcome.failures] == lost
    assert all("is elsewhere" in failure.message for failure in outcome.failures)
    assert outcome.counts.done + outcome.counts.failed == 3 * ITEMS
    runs = task_runs(flow_run_id)
    failed = [one for one in runs if one.state_name == "Failed"]
    assert len({one.name for one in failed}) == len(failed) == len(lost)
    assert all(one.name.startswith("seen[") for one in failed)
    assert all(one.state is not None and one.state.is_final() for one in runs)
    if record == "items":
        assert len(runs) == 3 + 3 * ITEMS


@pytest.mark.parametrize(("strategy", "batch", "record"), STRATEGIES[:2])
def test_items_by_way_of_the_flow(apart: str, strategy: str, batch: Any, record: str) -> None:
    options: dict[str, Any] = {"strategy": strategy, "batch": batch, "record": record}
    flow_run_id, outcome = run(apart, streamed, seen, label=type_of, **options)
    assert not [one.name for one in task_runs(flow_run_id) if "raised" in one.name]
    assert outcome.results == [*range(ITEMS), *DONE, *DONE]
    assert [failure.index[-1] for failure in outcome.failures] == [*LOST, *LOST]


@pytest.mark.parametrize(("strategy", "batch", "record"), STRATEGIES)
def test_items_that_lead_further(apart: str, strategy: str, batch: Any, record: str) -> None:
    flow_run_id, outcome = run(
        apart,
        found,
        doubled,
        seen,
        strategy=strategy,
        batch=batch,
        record=record,
        collect={"doubled": how_many},
        label=type_of,
    )
    # What a label raises is swallowed, and told in the name.
    assert not [one.name for one in task_runs(flow_run_id) if "raised" in one.name]
    collected = outcome.collected_by_stage["doubled"]
    assert [value for _, value in collected] == [(2, 0)] * (ITEMS + 2 * len(DONE))
    twice = [item for item in DONE for _ in range(2)]
    every = [item for item in range(ITEMS) for _ in range(2)]
    assert outcome.results == [*every, *twice, *twice]
    assert {failure.stage for failure in outcome.failures} == {"doubled"}
    assert [failure.index[-1] for failure in outcome.failures] == [*LOST, *LOST]


@pytest.mark.parametrize(("strategy", "batch", "record"), STRATEGIES)
def test_results(apart: str, strategy: str, batch: Any, record: str) -> None:
    flow_run_id, outcome = run(
        apart,
        numbered,
        brought,
        strategy=strategy,
        batch=batch,
        record=record,
        # A nested unit has its items worked on itself only where any worker may do it.
        resources=None,
    )
    assert outcome.results == DONE * 3
    assert [failure.index[-1] for failure in outcome.failures] == LOST * 3
    assert all("in the flow's process" in failure.message for failure in outcome.failures)
    assert all("is elsewhere" in failure.message for failure in outcome.failures)
    assert outcome.counts.done + outcome.counts.failed == 3 * ITEMS
    assert [len(results) for _, results in outcome.by_source] == [len(DONE)] * 3
    require_failed(flow_run_id, outcome, "brought")
    if record == "items":
        assert len(task_runs(flow_run_id)) == 3 + 3 * ITEMS


@pytest.mark.parametrize(("strategy", "batch", "record"), STRATEGIES)
def test_results_of_items_that_led_further(
    apart: str, strategy: str, batch: Any, record: str
) -> None:
    """They are lost with all that came back with them."""
    flow_run_id, outcome = run(
        apart, numbered, led_further, strategy=strategy, batch=batch, record=record
    )
    assert outcome.failures
    assert all("in the flow's process" in failure.message for failure in outcome.failures)
    require_failed(flow_run_id, outcome, "led_further")


@pytest.mark.parametrize(
    ("strategy", "batch", "record"),
    [*STRATEGIES, ("nested", 7, "batches"), ("sequential", "auto", "batches")],
)
def test_results_that_cannot_leave(apart: str, strategy: str, batch: Any, record: str) -> None:
    """Each can be pickled when it is tried, and not when it is to be sent."""
    flow_run_id, outcome = run(
        apart, numbered, going_once, strategy=strategy, batch=batch, record=record, resources=None
    )
    assert outcome.results == DONE * 3
    require_failed(flow_run_id, outcome, "going_once", "it went before")


@pytest.mark.parametrize("last", [once_if_late, once_found_if_late])
@pytest.mark.parametrize("strategy", ["sequential", *(strategy for strategy, *_ in STRATEGIES)])
def test_results_that_cannot_leave_with_their_sources(
    apart: str, strategy: str, last: Callable[[int], Any]
) -> None:
    """Items that were worked on where they were found fail themselves, and not their sources."""
    options: dict[str, Any] = {"strategy": strategy, "record": "batches", "resources": None}
    numbers = range(LATE - 300, LATE + 20)
    names = [f"source {number}" for number in numbers]
    flow_run_id, outcome = run(apart, two_of, last, sources=names, **options)
    assert outcome.results == [number for number in numbers if number <= LATE for _ in range(2)]
    assert {failure.stage for failure in outcome.failures} == {last.__name__}
    # Else they were not worked on where they were found.
    assert outcome.report["units"]["two_of"]["largest"] > 1 or strategy == "sequential"
    assert outcome.counts.done + outcome.counts.failed == 2 * len(names)
    require_failed(flow_run_id, outcome, last.__name__, "it went before")


@pytest.mark.parametrize(("strategy", "batch", "record"), STRATEGIES)
def test_states_with_results_that_cannot_leave(
    apart: str, strategy: str, batch: Any, record: str
) -> None:
    flow_run_id, outcome = run(
        apart, numbered, completed_with_a_lock, strategy=strategy, batch=batch, record=record
    )
    assert outcome.results == DONE * 3
    require_failed(flow_run_id, outcome, "completed_with_a_lock", "cannot be pickled")


@pytest.mark.parametrize(("strategy", "batch", "record"), STRATEGIES)
def test_what_the_flow_cannot_send_on(apart: str, strategy: str, batch: Any, record: str) -> None:
    flow_run_id, outcome = run(
        apart,
        two_of,
        led_to_locks,
        sources=["source 5", "source 0"],
        strategy=strategy,
        batch=batch,
        record=record,
    )
    assert outcome.results == [5, 5, 0, 7, 0, 7]
    assert len(outcome.failures) == 2
    require_failed(flow_run_id, outcome, "led_to_locks", "cannot pickle")


@pytest.mark.parametrize(("strategy", "batch", "record"), STRATEGIES)
def test_what_is_collected(apart: str, strategy: str, batch: Any, record: str) -> None:
    flow_run_id, outcome = run(
        apart,
        numbered,
        brought_whole,
        strategy=strategy,
        batch=batch,
        record=record,
        collect=task(bound_to_its_process),
    )
    assert [failure.stage for failure in outcome.failures] == ["bound_to_its_process"] * 3
    require_failed(flow_run_id, outcome, "bound_to_its_process")


@pytest.mark.parametrize(("strategy", "batch", "record"), STRATEGIES)
def test_what_all_results_come_to(apart: str, strategy: str, batch: Any, record: str) -> None:
    options: dict[str, Any] = {"strategy": strategy, "batch": batch, "record": record}
    flow_run_id, outcome = run(
        apart, numbered, brought_whole, reduce=task(at_home_in_the_end), **options
    )
    assert outcome.reduced is None
    assert [failure.stage for failure in outcome.failures] == ["at_home_in_the_end"]
    assert "is elsewhere" in outcome.failures[0].message
    # Several parts may fail at once: the outcome has the first of them.
    failed = [one for one in task_runs(flow_run_id) if one.state_name == "Failed"]
    assert {one.name.partition("[")[0] for one in failed} == {"at_home_in_the_end"}
    assert outcome.report["recording"]["unrecorded"] == 0
    with pytest.raises(EvolveFailed, match="is elsewhere"):
        run(
            apart,
            numbered,
            brought_whole,
            reduce=task(at_home_in_the_end),
            on_failure="finish",
            **options,
        )


@pytest.mark.parametrize(("strategy", "batch", "record"), STRATEGIES)
def test_sources_that_cannot_be_sent(apart: str, strategy: str, batch: Any, record: str) -> None:
    flow_run_id, outcome = run(
        apart,
        numbered,
        brought_whole,
        sources=["plain", threading.Lock(), "heavy"],
        strategy=strategy,
        batch=batch,
        record=record,
    )
    assert outcome.results == [*range(ITEMS)] * 2
    require_failed(flow_run_id, outcome, "numbered", "cannot be pickled")


def test_sources_that_a_journal_has(apart: str, tmp_path: Path) -> None:
    """They are not lost with others of their unit, whose results came back and were lost."""
    options: dict[str, Any] = {"journal": f"known-{tmp_path.name}", "resources": None}
    # Short sources go together, and their items with them, once it is known that they are short.
    options |= {"record": "batches", "strategy": "as_completed"}
    names = [f"source {number}" for number in range(LATE + 100)]
    _, outcome = run(apart, two_of, lost_if_late_and_odd, sources=names[::2], **options)
    assert not outcome.failures
    _, outcome = run(apart, two_of, lost_if_late_and_odd, sources=names, **options)
    assert outcome.report["units"]["two_of"]["largest"] > 1
    assert outcome.counts.resumed == len(names)
    assert outcome.failures
    assert all(index % 2 for index, *_ in (failure.index for failure in outcome.failures))
    assert [results for _, results in outcome.by_source[::2]] == [[0, 0]] * (len(names) // 2)


def test_a_worker_whose_clock_is_ahead(prefect_api: None) -> None:
    """The API keeps the state with the latest time, whichever it hears last."""

    @flow
    def around() -> UUID:
        run_id = uuid4()
        task_run = new_task_run(task(brought), run_id=run_id, name="brought[ahead]")
        before, ended = task_run.state, Completed()
        assert before is not None
        ended.timestamp += timedelta(minutes=1)
        enter_state(task_run, before, ended)
        emit_task_run_state_change_event(task_run, initial_state=before, validated_state=ended)
        assert wait_until_recorded([run_id], logging.getLogger()) == 0
        unread = GivenUp(task(brought), run_id, "unused", None, "is elsewhere", False, True)
        assert record_given_up([unread]) == [run_id]
        assert wait_until_recorded([run_id], logging.getLogger(), 20, ends=FAILED) == 0
        return UUID(flow_run.id)

    (one,) = task_runs(around())
    assert one.name == "brought[ahead]"
    assert one.state_name == "Failed"


def test_where_sources_alone_are_task_runs(apart: str) -> None:
    flow_run_id, outcome = run(apart, numbered, brought, record="sources")
    assert len(outcome.failures) == 3 * len(LOST)
    assert {one.name.partition("[")[0] for one in task_runs(flow_run_id)} == {"numbered"}
