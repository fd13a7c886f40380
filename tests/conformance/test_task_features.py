"""What a `@task` asks for, where its task runs go into units or are taken from Prefect's engine.

Transactions with their hooks and the cache, results that are stored, what `prefect.runtime` says,
tasks that are methods.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from prefect import flow, runtime, task
from prefect.cache_policies import INPUTS, NO_CACHE
from prefect.client.schemas.objects import State
from prefect.locking.filesystem import FileSystemLockManager
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.states import Completed
from prefect.transactions import IsolationLevel, Transaction

from evolve_tasks import EvolveFailed, EvolveTaskRunner, Outcome, evolve

R = TypeVar("R")

STRATEGIES = ["sequential", "as_completed", "async", "nested"]
TWO = ["sequential", "as_completed"]  # one after the other in the flow's process, and on workers
RECORDS = ["items", "batches", "sources"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


@dataclass
class Seen:
    """What the tasks and hooks of this process noted, and how often."""

    noted: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


seen = Seen()


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    global seen
    seen = Seen()
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield


@pytest.fixture
def runner(thread_workers: str) -> EvolveTaskRunner:
    return EvolveTaskRunner(address=thread_workers)


# A task is pickled with all that its function names, but for the functions of a module: they
# are found again by their names, and with them what this process has noted.


def note(what: str) -> int:
    """Note that something was done; give how often it was by now."""
    with seen.lock:
        seen.noted[what] += 1
        return seen.noted[what]


def noted(prefix: str = "") -> dict[str, int]:
    return {what: times for what, times in seen.noted.items() if what.startswith(prefix)}


def committed(transaction: Transaction) -> None:
    note("committed")


def rolled_back(transaction: Transaction) -> None:
    note("rolled back")


def in_flow(runner: Any, body: Callable[[], R], **options: Any) -> R:
    """Run `body` in a flow; give what it returned, untouched by Prefect."""
    returned: list[R] = []

    @flow(name="task features", task_runner=runner, **options)
    def around() -> None:
        returned.append(body())

    around()
    return returned[0]


def outcome_of(sources: Any, first: Any, last: Any, **options: Any) -> Outcome:
    """Evolve, and give the outcome whether or not it was accepted."""
    try:
        return evolve(sources, first, last, **options)
    except EvolveFailed as failed:
        return failed.outcome


Item = tuple[str, str]  # what makes it unlike those of other tests, and its kind

KINDS = ["good", "good", "flaky", "bad", "last"]


def items_of(run: str) -> list[Item]:
    return [(run, kind) for kind in KINDS]


@task(retries=1, persist_result=True, cache_policy=INPUTS)
def stores(item: Item) -> str:
    """Note that it ran, and fail as the kind of the item says."""
    kind = item[1]
    times = note(f"ran {kind}")
    if kind == "bad" or (kind == "flaky" and times == 1):
        raise ConnectionError(kind)
    return kind


@task(retries=1, persist_result=True, cache_policy=INPUTS)
async def stores_async(item: Item) -> str:
    """The same."""
    kind = item[1]
    times = note(f"ran {kind}")
    await asyncio.sleep(0)
    if kind == "bad" or (kind == "flaky" and times == 1):
        raise ConnectionError(kind)
    return kind


for _task in (stores, stores_async):
    _task.on_commit(committed)
    _task.on_rollback(rolled_back)


# -- transactions --------------------------------------------------------------------------------


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_item_has_a_transaction_of_its_own(strategy: str, record: str, runner: Any) -> None:
    options = {"strategy": strategy, "record": record, "batch": 5}

    def body() -> list[Outcome]:
        run = f"transactions {strategy} {record}"
        return [outcome_of([run], items_of, stores, **options) for _ in range(2)]

    first, second = in_flow(runner, body)
    for outcome in (first, second):
        assert outcome.results == ["good", "good", "flaky", "last"]
        assert [one.index for one in outcome.failures] == [(0, 3)]
    # The second of two equal items is taken from the cache, and in the second run all are.
    assert noted("ran") == {"ran good": 1, "ran flaky": 2, "ran bad": 4, "ran last": 1}
    assert (seen.noted["committed"], seen.noted["rolled back"]) == (3, 0)


@pytest.mark.parametrize("record", RECORDS)
def test_each_item_of_an_async_task_has_one(record: str, runner: Any) -> None:
    options = {"strategy": "as_completed", "record": record, "batch": 5}
    run = f"async transactions {record}"
    outcome = in_flow(runner, lambda: outcome_of([run], items_of, stores_async, **options))
    assert outcome.results == ["good", "good", "flaky", "last"]
    assert noted("ran") == {"ran good": 1, "ran flaky": 2, "ran bad": 2, "ran last": 1}
    assert seen.noted["committed"] == 3


@pytest.mark.parametrize("strategy", TWO)
def test_equal_items_of_a_batch_do_not_wait_for_each_other(
    strategy: str, runner: Any, tmp_path: Path
) -> None:
    policy = INPUTS.configure(
        isolation_level=IsolationLevel.SERIALIZABLE,
        lock_manager=FileSystemLockManager(tmp_path),
    )
    alone = stores.with_options(cache_policy=policy)
    options = {"strategy": strategy, "record": "batches", "batch": 5}
    run = f"serializable {strategy}"
    outcome = in_flow(runner, lambda: outcome_of([run], items_of, alone, **options))
    assert outcome.results == ["good", "good", "flaky", "last"]
    assert seen.noted["ran good"] == 1


@task(retries=1, persist_result=True, cache_policy=INPUTS)
def fails_once(item: Item) -> str:
    """Fail at the first attempt."""
    if note(f"ran {item[1]}") == 1:
        raise ConnectionError(item[1])
    return item[1]


fails_once.on_commit(committed)


@task
def calls(item: Item) -> str:
    """Call a task."""
    return fails_once(item)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("strategy", TWO)
def test_a_child_that_failed_once_is_committed(strategy: str, record: str, runner: Any) -> None:
    options = {"strategy": strategy, "record": record, "batch": 5}

    def body() -> list[Any]:
        run = f"child {strategy} {record}"
        return [evolve([run], one_good, calls, **options).results for _ in range(2)]

    assert in_flow(runner, body) == [["good"], ["good"]]
    assert noted() == {"ran good": 2, "committed": 1}


def one_good(run: str) -> list[Item]:
    return [(run, "good")]


# -- stored results ------------------------------------------------------------------------------


@task
def notes(item: Item) -> str:
    """Note that it ran; whether its result is stored depends on what is around it."""
    note(f"ran {item[1]}")
    return item[1]


@task
def notes_within(item: Item) -> str:
    """Call the same as a task."""
    return notes(item)


def kinds(run: str) -> list[Item]:
    return [(run, str(position)) for position in range(3)]


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("strategy", TWO)
def test_results_are_stored_where_the_flow_wants_it(
    strategy: str, record: str, runner: Any
) -> None:
    options = {"strategy": strategy, "record": record, "batch": 3}

    def body() -> list[Any]:
        # Prefect's own cache: equal calls in one flow run are one.
        return [evolve(["stored"], kinds, notes, **options).results for _ in range(2)]

    assert in_flow(runner, body, persist_result=True) == [["0", "1", "2"]] * 2
    assert noted() == {"ran 0": 1, "ran 1": 1, "ran 2": 1}


@pytest.mark.parametrize("last", [notes, notes_within])
def test_results_are_stored_where_the_task_around_wants_it(last: Any, runner: Any) -> None:
    @task(persist_result=True, cache_policy=NO_CACHE)
    def outer(record: str) -> list[Any]:
        options: Any = {"strategy": "sequential", "record": record, "batch": 3}
        return evolve([record], kinds, last, **options).results

    def body() -> list[Any]:
        # What is in a task is committed with it: the second one finds what the first has left.
        return [outer(record) for record in RECORDS for _ in range(2)]

    assert in_flow(runner, body) == [["0", "1", "2"]] * 6
    assert noted() == {"ran 0": 3, "ran 1": 3, "ran 2": 3}


def test_what_a_task_submits_is_stored_as_its_own_result_is(runner: Any) -> None:
    @task(persist_result=True)
    def outer() -> list[str]:
        return [notes.submit(("submitted", "good")).result() for _ in range(2)]

    assert in_flow(runner, outer) == ["good", "good"]
    assert noted() == {"ran good": 1}


# -- limits and stored lists ---------------------------------------------------------------------


@task(persist_result=True, cache_policy=INPUTS)
def yields(run: str) -> Iterator[int]:
    """Ten items."""
    note(run)
    yield from range(10)


@task(persist_result=True, cache_policy=INPUTS)
async def yields_async(run: str) -> AsyncIterator[int]:
    """Ten items."""
    note(run)
    for number in range(10):
        yield number


@task(persist_result=True, cache_policy=INPUTS)
def yields_for_ever(run: str) -> Iterator[int]:
    """No end of items."""
    yield from count()


@task(persist_result=True, cache_policy=INPUTS)
def gives_set(run: str) -> set[int]:
    """Ten items that nobody can take a slice of."""
    note(run)
    return set(range(10))


@pytest.mark.parametrize("record", ["items", "batches"])
@pytest.mark.parametrize("first", [yields, yields_async])
@pytest.mark.parametrize("strategy", TWO)
def test_a_list_that_was_cut_is_not_stored(
    strategy: str, first: Any, record: str, runner: Any
) -> None:
    options = {"strategy": strategy, "record": record}
    run = f"cut {strategy} {first.name} {record}"

    def body() -> list[Any]:
        cut = evolve([run], first, abs, max_items=3, **options).results
        return [cut, *(evolve([run], first, abs, **options).results for _ in range(2))]

    assert in_flow(runner, body) == [[0, 1, 2], list(range(10)), list(range(10))]
    assert noted() == {run: 2}  # the whole list is in the cache


def test_what_never_ends_is_ended_though_its_result_would_be_stored(runner: Any) -> None:
    def body() -> list[Any]:
        return evolve(["for ever"], yields_for_ever, abs, max_items=3).results

    assert in_flow(runner, body) == [0, 1, 2]


@pytest.mark.parametrize("strategy", TWO)
def test_what_is_in_the_cache_is_checked_as_what_is_returned(strategy: str, runner: Any) -> None:
    run = f"set {strategy}"

    def body() -> list[Any]:
        gives_set(run)
        return evolve([run], gives_set, abs, strategy=strategy, batch=4).results

    assert sorted(in_flow(runner, body)) == list(range(10))
    assert noted() == {run: 1}


# -- what prefect.runtime says -------------------------------------------------------------------


def parameters_here() -> dict[str, Any]:
    return dict(runtime.task_run.parameters)


def named_by_parameters() -> str:
    return f"named {parameters_here()['item']}"


@task
def tells(item: int, factor: int = 2) -> Any:
    """What the runtime says."""
    return parameters_here()


@task
async def tells_async(item: int, factor: int = 2) -> Any:
    """What the runtime says."""
    return parameters_here()


@task(retries=1, task_run_name=named_by_parameters)
def tells_with_name(item: int, factor: int = 2) -> Any:
    """What the runtime says, its name included."""
    assert runtime.task_run.name == f"named {item}"
    return parameters_here()


@task
def adds_up(source: int, results: list[Any]) -> Any:
    """What the runtime says."""
    return parameters_here()


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("strategy", TWO)
def test_parameters_are_what_the_task_is_called_with(
    strategy: str, record: str, runner: Any
) -> None:
    options = {"strategy": strategy, "record": record, "batch": 2}

    def body() -> list[Outcome]:
        return [
            evolve([2], range, last, collect=adds_up, **options)
            for last in (tells, tells_async, tells_with_name)
        ]

    wanted = [{"item": item, "factor": 2} for item in range(2)]
    for outcome in in_flow(runner, body):
        assert outcome.results == wanted
        assert outcome.collected == [(2, {"source": 2, "results": wanted})]


@task
def gives_list(_: int) -> list[int]:
    """What another task is submitted with."""
    return [1, 2]


def test_parameters_of_what_was_submitted_are_resolved(runner: Any) -> None:
    def body() -> Any:
        return tells.submit(gives_list.submit(0)).result()

    assert in_flow(runner, body) == {"item": [1, 2], "factor": 2}


# -- states and methods --------------------------------------------------------------------------


@task
def skips(_: int) -> State[Any]:
    """Say that there was nothing to do."""
    return Completed(message="skipped")


@pytest.mark.parametrize("record", RECORDS)
def test_a_completed_state_without_a_value(record: str, runner: Any) -> None:
    outcome = in_flow(runner, lambda: outcome_of([2], range, skips, record=record, batch=2))
    assert outcome.results == [None, None]


class Parser:
    """Holds what its tasks need."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    @task
    def parse(self, source: int) -> list[str]:
        """Mark each item."""
        return [f"{self.mark}{item}" for item in range(source)]

    @task(retries=1)
    def process(self, item: str) -> str:
        """Mark it once more."""
        return item + self.mark

    @task
    def process_plainly(self, item: str) -> str:
        """The same."""
        return item + self.mark

    @task
    def collect(self, source: int, results: list[str]) -> str:
        """Join them."""
        return self.mark + "".join(results)


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize("strategy", TWO)
def test_methods_that_are_tasks(strategy: str, record: str, runner: Any) -> None:
    check_methods(strategy, record, runner)


def test_methods_that_are_tasks_in_other_processes(process_workers: str) -> None:
    check_methods("as_completed", "batches", EvolveTaskRunner(address=process_workers))


def check_methods(strategy: str, record: str, runner: Any) -> None:
    options: Any = {"strategy": strategy, "record": record, "batch": 2}

    def body() -> list[Outcome]:
        one, other = Parser("a"), Parser("b")
        return [
            evolve([2], one.parse, last, collect=one.collect, **options)
            for last in (one.process, other.process_plainly)
        ]

    first, second = in_flow(runner, body)
    assert (first.results, first.collected) == (["a0a", "a1a"], [(2, "aa0aa1a")])
    assert (second.results, second.collected) == (["a0b", "a1b"], [(2, "aa0ba1b")])


# -- time limits ---------------------------------------------------------------------------------


@task(timeout_seconds=60)
async def yields_in_time(source: int) -> AsyncIterator[int]:
    """A time limit of a generator would go on while the flow holds it back."""
    for number in range(source):
        yield number


def test_a_generator_with_a_time_limit_is_not_held_back(
    runner: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="prefect.flow_runs"):
        outcome = in_flow(runner, lambda: evolve([3], yields_in_time, abs))
    assert outcome.results == [0, 1, 2]
    said = [one.getMessage() for one in caplog.records]
    assert any("yields_in_time is run to its end before its items begin" in one for one in said)
