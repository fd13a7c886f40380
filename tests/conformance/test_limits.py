"""Work without an end, and sources that end half way: the same with every strategy."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from prefect import task

from evolve_tasks import EvolveFailed, EvolveTaskRunner, Outcome, evolve, evolve_iter
from tests.conformance.flows import in_flow

STRATEGIES = ["sequential", "as_completed", "async", "nested"]

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


@pytest.fixture
def runner(thread_workers: str) -> EvolveTaskRunner:
    return EvolveTaskRunner(address=thread_workers)


@task
def pair(number: int) -> list[int]:
    return [10 * number, 10 * number + 1]


@task
def endless_task(number: int) -> Iterator[int]:
    yield from itertools.count(number)


def endless(number: int) -> Iterator[int]:
    yield from itertools.count(number)


async def endless_async(number: int) -> AsyncIterator[int]:
    for item in itertools.count(number):
        yield item


@task
def same(item: int) -> int:
    return item


@pytest.mark.parametrize("batch", [3, "auto"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_endless_sources_end_at_the_limit(strategy: str, batch: Any, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "batch": batch, "max_items": 25}
        return evolve(itertools.count(), pair, same, **options)

    outcome = in_flow(runner, body)
    # Which sources have come first is for the strategy; all that was discovered is done.
    assert len(outcome.results) == 25
    assert outcome.results == sorted(set(outcome.results))
    assert (outcome.counts.discovered, outcome.counts.done, outcome.counts.not_run) == (25, 25, 0)
    assert outcome.stopped is not None
    assert "limits.max_items=25 was reached" in outcome.stopped
    assert "It stopped early: limits.max_items=25" in outcome.report.markdown().replace("\\", "")


@pytest.mark.parametrize("parse", [endless, endless_task, endless_async])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_endless_generator_ends_at_the_limit(strategy: str, parse: Any, runner: Any) -> None:
    def body() -> list[Any]:
        options: Any = {"strategy": strategy, "max_items": 40}
        return [item.value for item in evolve_iter([7], parse, same, **options)]

    assert sorted(in_flow(runner, body)) == list(range(7, 47))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_limit_that_is_not_reached_changes_nothing(strategy: str, runner: Any) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "max_items": 20}
        return evolve(range(10), pair, same, **options)

    outcome = in_flow(runner, body)
    assert outcome.results == [10 * n + i for n in range(10) for i in (0, 1)]
    assert outcome.stopped is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_limit_is_over_all_levels(strategy: str, runner: Any) -> None:
    """Ten pairs are twenty items; with what they give the fiftieth is soon reached."""

    def body() -> Outcome:
        options: Any = {"strategy": strategy, "max_items": 50}
        return evolve(range(10), pair, pair, same, **options)

    outcome = in_flow(runner, body)
    found = [stage.discovered for stage in outcome.counts.by_stage.values()]
    assert sum(found[1:]) == 50
    for stage in outcome.counts.by_stage.values():
        assert stage.discovered == stage.done + stage.not_run
    assert len(outcome.results) == found[-1]


ATTEMPTS = 2


def breaks_plain(number: int) -> Iterator[int]:
    for item in range(5):
        if item == 3 and number == 1:
            raise OSError("broken pipe")
        yield 10 * number + item


@task(retries=ATTEMPTS - 1)
def breaks_task(number: int) -> Iterator[int]:
    yield from breaks_plain(number)


async def breaks_async(number: int) -> AsyncIterator[int]:
    for item in breaks_plain(number):
        yield item


@pytest.mark.parametrize("record", ["items", "batches"])
@pytest.mark.parametrize("parse", [breaks_plain, breaks_task, breaks_async])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_came_before_an_error_is_worked_on(
    strategy: str, parse: Any, record: str, runner: Any
) -> None:
    def body() -> Outcome:
        options: Any = {"strategy": strategy, "record": record}
        with pytest.raises(EvolveFailed) as raised:
            evolve([0, 1, 2], parse, same, **options)
        return raised.value.outcome

    outcome = in_flow(runner, body)
    assert outcome.results == [0, 1, 2, 3, 4, 10, 11, 12, 20, 21, 22, 23, 24]
    (failure,) = outcome.failures
    assert (failure.index, failure.error_type, failure.source) == ((1,), "OSError", 1)
    assert failure.message == "broken pipe (items given before: 3; they are worked on)"
    assert failure.attempts == (ATTEMPTS if parse is breaks_task else 1)
    counts = outcome.counts
    assert (counts.sources, counts.sources_failed, counts.discovered, counts.done) == (3, 1, 13, 13)
