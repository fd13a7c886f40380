"""What users may do in a task and around a run, and what must not change by it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from distributed import Client
from prefect import flow, task
from prefect.cache_policies import INPUTS, TASK_SOURCE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from evolve_tasks import EvolveFailed, EvolveTaskRunner, aevolve, aevolve_iter, evolve, evolve_iter
from tests.conformance.cases import count_up, count_up_plain, double
from tests.conformance.flows import in_async_flow, in_flow

STRATEGIES = ["sequential", "as_completed", "async", "nested"]

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.parametrize("strategy", STRATEGIES),
]


@pytest.fixture
def runner(thread_workers: str) -> EvolveTaskRunner:
    """A runner on the session's worker threads."""
    return EvolveTaskRunner(address=thread_workers)


def one_item(source: Any) -> list[Any]:
    """The source as its only item."""
    return [source]


def tasks_without_source() -> tuple[Any, Any]:
    """Two tasks whose source cannot be read, as in a notebook: Prefect hashes their code."""
    names: dict[str, Any] = {}
    exec("def plus(x): return x + 1\ndef text(x): return [x * 100, str(x)]", names)
    policy = INPUTS + TASK_SOURCE
    return (
        task(names["plus"], cache_policy=policy, persist_result=True),
        task(names["text"], cache_policy=policy, persist_result=True),
    )


def test_tasks_keep_their_own_cache_keys(strategy: str, runner: Any) -> None:
    plus, text = tasks_without_source()

    def body() -> tuple[list[Any], list[Any]]:
        return (
            evolve([7], one_item, plus, strategy=strategy).results,
            evolve([7], one_item, text, strategy=strategy).results,
        )

    assert in_flow(runner, body) == ([8], [[700, "7"]])


@task
def gives_failed_state(_: Any) -> State[Any]:
    """Say that it failed without raising."""
    return Failed(message="no")


@task
def gives_completed_state(_: Any) -> State[Any]:
    """Say what came out as a state."""
    return Completed(data=[1, 2])


@pytest.mark.parametrize("record", ["items", "sources", "batches"])
def test_a_failed_state_is_a_failure(record: str, strategy: str, runner: Any) -> None:
    options: dict[str, Any] = {"strategy": strategy, "record": record, "on_failure": "ignore"}
    outcome = in_flow(runner, lambda: evolve([1], one_item, gives_failed_state, **options))
    assert (outcome.counts.failed, outcome.counts.done, outcome.results) == (1, 0, [])
    outcome = in_flow(runner, lambda: evolve([1], gives_failed_state, abs, **options))
    assert (outcome.counts.sources_failed, outcome.counts.discovered) == (1, 0)


def test_a_completed_state_stands_for_its_value(strategy: str, runner: Any) -> None:
    outcome = in_flow(runner, lambda: evolve([1], gives_completed_state, abs, strategy=strategy))
    assert outcome.results == [1, 2]


class Particular(BaseException):
    """Beyond Exception, so that nothing catches it by chance."""


def raises_beyond_exception(x: int) -> int:
    """Fail in a way that Dask waits for for ever."""
    if x == 1:
        raise Particular("beyond")
    if x == 2:
        raise asyncio.CancelledError
    return x


def test_whatever_is_raised_fails_its_item_alone(strategy: str, runner: Any) -> None:
    outcome = in_flow(
        runner,
        lambda: evolve([4], range, raises_beyond_exception, strategy=strategy, on_failure="ignore"),
    )
    assert outcome.results == [0, 3]
    assert [failure.error_type for failure in outcome.failures] == ["Particular", "CancelledError"]


class Picky(Exception):
    """Pickles, and cannot be unpickled: it passes on other arguments than it takes."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one}-{two}")


def gives_picky(x: int) -> Any:
    """One value in three that cannot be unpickled."""
    return Picky(1, 2) if x == 1 else x


def test_a_value_that_cannot_be_unpickled_fails_alone(strategy: str, runner: Any) -> None:
    outcome = in_flow(
        runner,
        lambda: evolve([3], range, gives_picky, strategy=strategy, on_failure="ignore"),
    )
    assert outcome.results == [0, 2]
    assert "gives_picky" in outcome.failures[0].message
    assert "Picky" in outcome.failures[0].message


class Stray:
    """Pickles, and raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


def gives_stray(x: int) -> Any:
    """One value in three that has something in it that cannot be unpickled."""
    return {"found": [Stray()]} if x == 1 else x


def gives_strays(source: int) -> list[Any]:
    """Items that cannot travel, from one source in three."""
    return [Stray()] if source == 1 else [source]


def of_any_kind(source: Any) -> list[int]:
    return [1]


def test_what_is_in_a_value_and_cannot_be_unpickled_fails_alone(strategy: str, runner: Any) -> None:
    outcome = in_flow(
        runner,
        lambda: evolve([3], range, gives_stray, strategy=strategy, on_failure="ignore"),
    )
    assert outcome.results == [0, 2]
    assert "gives_stray returned a value of type dict" in outcome.failures[0].message
    outcome = in_flow(
        runner,
        lambda: evolve(range(3), gives_strays, abs, strategy=strategy, on_failure="ignore"),
    )
    assert outcome.results == [0, 2]
    assert "gives_strays returned a value of type list" in outcome.failures[0].message


def test_a_source_that_cannot_be_unpickled_fails_alone(strategy: str, runner: Any) -> None:
    sources = [0, {"in": Stray()}, 2]
    outcome = in_flow(
        runner,
        lambda: evolve(sources, of_any_kind, abs, strategy=strategy, on_failure="ignore"),
    )
    assert outcome.results == [1, 1]
    assert [failure.index for failure in outcome.failures] == [(1,)]
    assert "cannot be pickled and unpickled" in outcome.failures[0].message


def test_results_come_while_the_next_source_is_awaited(strategy: str, runner: Any) -> None:
    """A source that waits for the results of the ones before it is not waited for."""
    seen: list[int] = []

    def sources() -> Iterator[int]:
        for number in range(5):
            deadline = time.monotonic() + 30
            while len(seen) < number and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(seen) == number, "no result came while a source was awaited"
            yield number

    def body() -> None:
        for item in evolve_iter(sources(), one_item, abs, strategy=strategy):
            seen.append(item.value)

    in_flow(runner, body)
    assert seen == [0, 1, 2, 3, 4]


def test_sources_before_an_error_are_worked_on(strategy: str, runner: Any) -> None:
    def sources() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no more")

    with pytest.raises(EvolveFailed) as raised:
        in_flow(runner, lambda: evolve(sources(), count_up, double, strategy=strategy))
    assert raised.value.outcome.results == [2000, 4000, 4002]
    assert len(repr(raised.value)) < 200


def slowly(x: int) -> int:
    """Long enough that a run of many of them is under way when it is cancelled."""
    time.sleep(0.05)
    return x


def test_a_cancelled_run_stops(strategy: str, runner: Any, thread_workers: str) -> None:
    """Cancelling the coroutine stops the work, and leaves nothing behind on the workers."""

    async def body() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def sources() -> Iterator[int]:
            loop.call_soon_threadsafe(begun.set)
            yield 10_000

        async def whole() -> None:
            await aevolve(sources(), count_up_plain, slowly, strategy=strategy)

        async def step_by_step() -> None:
            async for _ in aevolve_iter(sources(), count_up_plain, slowly, strategy=strategy):
                pass

        for run in (whole, step_by_step):
            begun.clear()
            under_way = asyncio.create_task(run())
            await begun.wait()
            under_way.cancel()
            with pytest.raises(asyncio.CancelledError):
                await under_way

    asyncio.run(in_async_flow(runner, body))
    with Client(thread_workers, set_as_default=False) as client:
        plugins = client.run(lambda dask_worker: list(dask_worker.plugins))
    assert not [name for names in plugins.values() for name in names if "evolve" in name]


def test_awaited_inside_an_async_task_on_one_thread(strategy: str) -> None:
    @task
    async def outer() -> list[int]:
        return (await aevolve([2, 1], count_up_plain, abs, strategy=strategy)).results

    cluster = {"n_workers": 1, "threads_per_worker": 1, "processes": False}

    @flow(task_runner=EvolveTaskRunner(cluster_kwargs={**cluster, "dashboard_address": None}))
    def around() -> list[int]:
        return outer.submit().result(timeout=120)

    assert around() == [2000, 2001, 1000]


class Stay:
    """Something that does not travel; nor does its text say where in memory it is."""

    def __reduce__(self) -> Any:
        raise TypeError("it stays")

    def __repr__(self) -> str:
        return "Stay()"


def two_of(source: Any) -> list[int]:
    if not isinstance(source, int):
        raise TypeError(f"{source} is no number")
    return [source, source]


@pytest.mark.parametrize("batch", [1, "auto"])
def test_a_source_that_cannot_travel_costs_itself_alone(
    batch: Any, strategy: str, runner: Any
) -> None:
    """Short sources travel together."""
    sources: list[Any] = [Stay() if number % 60 == 59 else number for number in range(300)]

    def body() -> Any:
        options: dict[str, Any] = {"strategy": strategy, "batch": batch, "on_failure": "ignore"}
        return evolve(sources, two_of, abs, record="sources", **options)

    outcome = in_flow(runner, body)
    assert [failure.index for failure in outcome.failures] == [
        (59,),
        (119,),
        (179,),
        (239,),
        (299,),
    ]
    assert {(one.item, one.error_type) for one in outcome.failures} == {("Stay()", "TypeError")}
    assert [failure.source for failure in outcome.failures] == sources[59::60]
    assert outcome.results == [n for n in range(300) if n % 60 != 59 for _ in range(2)]
    assert outcome.counts.sources == 300
    assert outcome.counts.sources_failed == 5
