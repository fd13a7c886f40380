"""`evolve`, `aevolve`, `evolve_iter` and `aevolve_iter` in sync and in async flows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import distributed
import distributed.client
import pytest
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

from evolve_tasks import (
    EvolveFailed,
    EvolveTaskRunner,
    InvalidInput,
    NotInFlow,
    aevolve,
    aevolve_iter,
    evolve,
    evolve_iter,
)
from tests.conformance.cases import count_up, count_up_plain, double, double_plain, odd_items_fail
from tests.conformance.flows import in_async_flow, in_flow

STRATEGIES = ["sequential", "as_completed", "async", "nested"]
PARALLEL = STRATEGIES[1:]
SOURCES = [3, 0, 2, 1]
RESULTS = [6000, 6002, 6004, 4000, 4002, 2000]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture
def runner(thread_workers: str) -> EvolveTaskRunner:
    """A runner on the session's worker threads."""
    return EvolveTaskRunner(address=thread_workers)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_iter_gives_each_item_once(strategy: str, runner: Any) -> None:
    outcomes = in_flow(
        runner, lambda: list(evolve_iter(SOURCES, count_up, double, strategy=strategy))
    )
    assert sorted(item.index for item in outcomes) == [
        (0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (3, 0)
    ]  # fmt: skip
    in_order = sorted(outcomes, key=lambda item: item.index)
    assert [item.value for item in in_order] == RESULTS
    assert all(item.ok and not item.resumed for item in outcomes)
    assert [item.source for item in in_order] == [3, 3, 3, 2, 2, 1]


had_some = threading.Event()


def waits_for_the_loop(item: int) -> int:
    """Of the later items none ends before the loop has had some of the first."""
    assert item < 20 or had_some.wait(60), "the loop was given nothing"
    return item


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_iter_gives_items_while_their_source_is_worked_on(strategy: str, runner: Any) -> None:
    had_some.clear()

    def body() -> list[int]:
        given = []
        for one in evolve_iter([40], range, waits_for_the_loop, strategy=strategy, batch=1):
            given.append(one.value)
            if len(given) == 5:
                had_some.set()
        return given

    assert sorted(in_flow(runner, body)) == list(range(40))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_aevolve_in_an_async_flow(strategy: str, runner: Any) -> None:
    async def body() -> list[int]:
        return (await aevolve(SOURCES, count_up, double, strategy=strategy)).results

    assert asyncio.run(in_async_flow(runner, body)) == RESULTS


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_aevolve_iter_in_an_async_flow(strategy: str, runner: Any) -> None:
    async def body() -> list[Any]:
        found = aevolve_iter(SOURCES, count_up, double, strategy=strategy)
        return [(item.index, item.value) async for item in found]

    pairs = asyncio.run(in_async_flow(runner, body))
    assert [value for _, value in sorted(pairs)] == RESULTS


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sync_evolve_in_an_async_flow(strategy: str, runner: Any) -> None:
    async def body() -> list[int]:
        return evolve(SOURCES, count_up, double, strategy=strategy).results

    assert asyncio.run(in_async_flow(runner, body)) == RESULTS


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_async_sources_come_in_the_flow_s_loop(strategy: str, runner: Any) -> None:
    closed: list[bool] = []

    async def from_a_queue(queue: asyncio.Queue[int], last: int) -> AsyncIterator[int]:
        try:
            while (source := await queue.get()) != last:
                yield source
        finally:
            closed.append(True)

    async def body() -> tuple[list[int], list[int]]:
        queue: asyncio.Queue[int] = asyncio.Queue()
        for source in [*SOURCES, -1, *SOURCES]:
            queue.put_nowait(source)
        whole = await aevolve(from_a_queue(queue, -1), count_up, double, strategy=strategy)
        some = []
        endless = from_a_queue(queue, -1)  # nothing comes any more, and nobody says so
        found = aevolve_iter(endless, count_up, double, strategy=strategy, batch=1)
        async with aclosing(found):
            async for one in found:
                some.append(one.value)
                if len(some) == len(RESULTS):
                    break
        return whole.results, some

    whole, some = asyncio.run(in_async_flow(runner, body))
    assert whole == RESULTS
    assert sorted(some) == sorted(RESULTS)
    assert closed == [True, True]


@pytest.mark.parametrize("strategy", ["sequential", "as_completed"])
def test_who_waits_for_async_sources_can_be_cancelled(strategy: str, runner: Any) -> None:
    asked = asyncio.Event()

    async def never() -> AsyncIterator[int]:
        asked.set()
        await asyncio.Event().wait()
        yield 0

    async def body() -> None:
        waiting = asyncio.create_task(aevolve(never(), count_up, double, strategy=strategy))
        await asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(in_async_flow(runner, body))


def test_async_sources_are_refused_where_nobody_can_await_them(runner: Any) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(InvalidInput, match="use aevolve"):
        in_flow(runner, lambda: evolve(numbers(), count_up, double))


def test_aevolve_leaves_the_loop_free(runner: Any) -> None:
    """While a run is under way, other coroutines of the flow go on."""
    release = threading.Event()

    def waits(x: int) -> int:
        assert release.wait(60)
        return x

    async def body() -> list[int]:
        async def other() -> None:
            release.set()

        both = await asyncio.gather(
            aevolve([1], count_up_plain, waits, strategy="sequential"), other()
        )
        return both[0].results

    assert asyncio.run(in_async_flow(runner, body)) == [1000]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_aevolve_that_is_cancelled_while_it_opens_leaves_nothing(
    steps: int, strategy: str, runner: Any, thread_workers: str
) -> None:
    async def body() -> bool:
        under_way = asyncio.ensure_future(aevolve([3], count_up, double, strategy=strategy))
        for _ in range(steps):  # each lets it go one step further
            await asyncio.sleep(0)
        under_way.cancel()
        with pytest.raises(asyncio.CancelledError):
            await under_way
        return under_way.cancelled()

    def left(dask_scheduler: distributed.Scheduler) -> list[str]:
        names = [*dask_scheduler.plugins, *dask_scheduler.worker_plugins]
        return [name for name in names if str(name).startswith(("evolve-run", "evolve-watch"))]

    assert asyncio.run(in_async_flow(runner, body))
    with distributed.Client(thread_workers) as client:
        assert client.run_on_scheduler(left) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_iter_gives_failures_and_raises_at_its_end(strategy: str, runner: Any) -> None:
    seen = []

    def body() -> None:
        for item in evolve_iter([3, "x"], count_up, odd_items_fail, strategy=strategy):
            seen.append(item)

    with pytest.raises(EvolveFailed) as raised:
        in_flow(runner, body)
    failed = raised.value
    assert sorted((item.index, item.ok) for item in seen) == [
        ((0, 0), True), ((0, 1), False), ((0, 2), True), ((1,), False)
    ]  # fmt: skip
    assert failed.outcome.counts.failed == 1
    assert failed.outcome.counts.sources_failed == 1
    assert {failure.index for failure in failed.outcome.failures} == {(0, 1), (1,)}


begun: list[int] = []


def note_begun(x: int) -> int:
    """Leave a trace: the session's worker threads are in this process, and share this list."""
    begun.append(x)
    return x


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_leaving_the_loop_stops_the_run(strategy: str, runner: Any) -> None:
    """What has not begun does not begin, and the cluster is free for the next run."""
    begun.clear()

    def body() -> int:
        for item in evolve_iter(
            iter(range(1, 10_000)), count_up_plain, note_begun, strategy=strategy, in_flight=8
        ):
            assert item.ok
            break
        return len(begun)

    at_the_end = in_flow(runner, body)
    assert 1 <= at_the_end <= 50
    # The same worker threads do other work now, and nothing of the first run comes after it.
    assert in_flow(runner, lambda: evolve(SOURCES, count_up, double)).results == RESULTS
    assert len(begun) == at_the_end


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("in_flight", "buffered", "total"), [(6, 1, 300), (6, 20, 300), (100, 50, 3_000)]
)
def test_a_slow_loop_is_not_overrun(
    strategy: str, in_flight: int, buffered: int, total: int, runner: Any
) -> None:
    """Sources are taken at most `in_flight` + `buffered` ahead of what the loop has taken."""

    def body() -> int:
        pulled = taken = lead = 0

        def sources() -> Iterator[int]:
            nonlocal pulled, lead
            for _ in range(total):
                pulled += 1
                lead = max(lead, pulled - taken)
                yield 1

        for _ in evolve_iter(
            sources(),
            count_up_plain,
            double_plain,
            strategy=strategy,
            in_flight=in_flight,
            buffered=buffered,
        ):
            taken += 1
        assert taken == total
        return lead

    assert in_flow(runner, body) <= in_flight + buffered


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_error_in_lazy_sources_keeps_what_was_finished(strategy: str, runner: Any) -> None:
    def sources() -> Iterator[int]:
        yield 2
        yield 1
        raise OSError("the directory is gone")

    def body() -> EvolveFailed:
        with pytest.raises(EvolveFailed) as failed:
            evolve(sources(), count_up, double, strategy=strategy, on_failure="ignore")
        return failed.value

    failed = in_flow(runner, body)
    outcome = failed.outcome
    assert isinstance(outcome.error, OSError)
    assert failed.__cause__ is outcome.error
    assert "the directory is gone" in str(failed)
    counts = outcome.counts
    assert counts.sources == 2
    assert counts.discovered == counts.done + counts.not_run
    assert outcome.results == [value for value in (4000, 4002, 2000) if value in outcome.results]


def test_auto_says_what_it_chose(runner: Any) -> None:
    assert in_flow(runner, lambda: evolve([1], count_up, double)).strategy == "as_completed"
    outcome = in_flow(runner, lambda: evolve([1], _yields, double))
    assert outcome.strategy == "nested"
    assert "generator" in outcome.reason


def _yields(n: int) -> Iterator[int]:
    yield from range(n)


def test_auto_without_dask_is_sequential_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        outcome = in_flow(ThreadPoolTaskRunner(), lambda: evolve([2], count_up, double))
    assert outcome.strategy == "sequential"
    assert outcome.results == [4000, 4002]
    assert any("EvolveTaskRunner" in record.message for record in caplog.records)


def test_a_strategy_that_needs_dask_is_refused_without_it() -> None:
    with pytest.raises(NotInFlow, match="EvolveTaskRunner"):
        in_flow(ThreadPoolTaskRunner(), lambda: evolve([2], count_up, double, strategy="nested"))


def test_outside_a_flow_it_is_refused() -> None:
    with pytest.raises(NotInFlow, match="@flow"):
        evolve([1], count_up, double)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("text", count_up, double), {}, ["'text'", "character", "[path]"]),
        ((b"bytes", count_up, double), {}, ["bytes"]),
        ((7, count_up, double), {}, ["7", "iterable"]),
        (([1],), {}, ["0 stages", "evolve(sources, parse_file, process_item)"]),
        (([1], count_up), {}, ["1 stage"]),
        (([1], count_up, 5), {}, ["5", "not callable"]),
        (([1], count_up, double), {"strategy": "fastest"}, ["fastest", "as_completed", "nested"]),
        (([1], count_up, double), {"bach": 5}, ["bach", "batch"]),
        (([1], count_up, double), {"in_flight": 0}, ["in_flight", "0", "1"]),
        (([1], count_up, double), {"batch": 0}, ["batch", "0", "1"]),
        (([1], count_up, double), {"batch": -3}, ["batch", "-3"]),
        (([1], count_up, double), {"buffered": 2, "limits": {"max_items": 3}}, ["buffered", "one"]),
        (([1], count_up, double), {"collect": 3}, ["collect"]),
        (([1], count_up, double), {"key": 3}, ["key", "not callable"]),
        (([1], count_up, double), {"journal": ""}, ["journal", "name that runs share"]),
    ],
    ids=lambda value: None,
)
def test_bad_input_is_refused_before_any_work(
    arguments: tuple[Any, ...], options: dict[str, Any], words: list[str], runner: Any
) -> None:
    for call in (evolve, evolve_iter):
        with pytest.raises(InvalidInput) as refused:
            in_flow(runner, lambda call=call: call(*arguments, **options))
        for word in words:
            assert word in str(refused.value)


@pytest.mark.parametrize("strategy", ["auto", *PARALLEL])
def test_inside_a_task_on_one_thread(strategy: str) -> None:
    """`evolve` in a task holds no thread while it waits."""

    @task
    def outer() -> tuple[list[int], str]:
        outcome = evolve(SOURCES, count_up, double, strategy=strategy)
        return outcome.results, outcome.strategy

    cluster = {"n_workers": 1, "threads_per_worker": 1, "processes": False}

    @flow(task_runner=EvolveTaskRunner(cluster_kwargs={**cluster, "dashboard_address": None}))
    def around() -> tuple[list[int], str]:
        return outer.submit().result(timeout=120)

    results, used = around()
    assert results == RESULTS
    assert used == ("nested" if strategy == "auto" else strategy)


@pytest.mark.parametrize("runner_class", ["evolve", "stock"])
def test_nested_works_on_one_thread(runner_class: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect_dask import DaskTaskRunner

    # The stock runner takes any default client of its process before what it was told; a worker
    # in the process of the tests leaves its own.
    monkeypatch.setattr(distributed.client, "_global_clients", {})
    make = EvolveTaskRunner if runner_class == "evolve" else DaskTaskRunner
    cluster = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    outcome = in_flow(
        make(cluster_kwargs=cluster), lambda: evolve(SOURCES, count_up, double, strategy="nested")
    )
    assert outcome.results == RESULTS


@pytest.mark.parametrize("strategy", PARALLEL)
def test_items_start_while_other_sources_are_still_parsed(strategy: str) -> None:
    """Two threads and a slow last file: nobody waits for it."""

    def parse(seconds: float) -> list[tuple[float, float, float]]:
        begun = time.time()
        time.sleep(seconds)
        return [(seconds, begun, time.time())] * 3

    def process(parsed: tuple[float, float, float]) -> tuple[Any, ...]:
        begun = time.time()
        time.sleep(0.05)
        return (*parsed, begun)

    cluster = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
    outcome = in_flow(
        EvolveTaskRunner(cluster_kwargs={**cluster, "dashboard_address": None}),
        lambda: evolve([0.05, 0.05, 0.05, 1.5], parse, process, strategy=strategy),
    )
    assert len(outcome.results) == 12
    last_parse_ended = max(ended for _, _, ended, _ in outcome.results)
    first_process_begun = min(begun for *_, begun in outcome.results)
    assert first_process_begun < last_parse_ended
