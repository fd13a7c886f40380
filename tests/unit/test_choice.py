"""Which strategy `auto` chooses, and what is said about it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, get_args

import pytest
from prefect import task

from evolve_tasks.errors import NotInFlow
from evolve_tasks.options import StrategyName
from evolve_tasks.stages import stages_from
from evolve_tasks.strategies.choice import choose


def listing(path: str) -> list[str]:
    return [path]


def yielding(path: str) -> Iterator[str]:
    yield path


async def yielding_async(path: str) -> AsyncIterator[str]:
    yield path


def process(item: str) -> str:
    return item


PARALLEL = [name for name in get_args(StrategyName) if name not in ("auto", "sequential")]


@pytest.mark.parametrize("wanted", PARALLEL)
@pytest.mark.parametrize("on_worker", [True, False])
def test_what_is_asked_for_is_done(wanted: StrategyName, on_worker: bool) -> None:
    stages = stages_from([yielding, process])
    choice = choose(wanted, stages, has_dask=True, on_worker=on_worker)
    assert (choice.strategy, choice.reason, choice.warn) == (wanted, "it was asked for", False)


@pytest.mark.parametrize("has_dask", [True, False])
def test_sequential_needs_nothing(has_dask: bool) -> None:
    stages = stages_from([listing, process])
    choice = choose("sequential", stages, has_dask=has_dask, on_worker=False)
    assert (choice.strategy, choice.warn) == ("sequential", False)


@pytest.mark.parametrize("wanted", PARALLEL)
def test_what_needs_dask_is_refused_without_it(wanted: StrategyName) -> None:
    with pytest.raises(NotInFlow) as refused:
        choose(wanted, stages_from([listing, process]), has_dask=False, on_worker=False)
    message = str(refused.value)
    for part in (repr(wanted), "EvolveTaskRunner()", "DaskTaskRunner", 'strategy="sequential"'):
        assert part in message


def test_auto_without_dask_is_sequential_with_a_warning_and_the_way_out() -> None:
    stages = stages_from([yielding, process])
    choice = choose("auto", stages, has_dask=False, on_worker=False)
    assert (choice.strategy, choice.warn) == ("sequential", True)
    assert "EvolveTaskRunner()" in choice.reason


def test_auto_on_dask_is_as_completed() -> None:
    choice = choose("auto", stages_from([listing, process]), has_dask=True, on_worker=False)
    assert (choice.strategy, choice.warn) == ("as_completed", False)
    assert choice.reason == "the flow runs on Dask"


def test_auto_on_a_worker_is_nested() -> None:
    choice = choose("auto", stages_from([listing, process]), has_dask=True, on_worker=True)
    assert (choice.strategy, choice.warn) == ("nested", False)
    assert "on a Dask worker" in choice.reason


@pytest.mark.parametrize(
    "first",
    [yielding, task(yielding), partial(yielding), yielding_async, task(yielding_async)],
    ids=["function", "task", "bound", "async function", "async task"],
)
def test_auto_with_a_generator_is_nested(first: Any) -> None:
    choice = choose("auto", stages_from([first, process]), has_dask=True, on_worker=False)
    assert choice.strategy == "nested"
    assert "generator" in choice.reason


def test_a_last_stage_that_is_a_generator_says_nothing_about_the_expansion() -> None:
    choice = choose("auto", stages_from([listing, yielding]), has_dask=True, on_worker=False)
    assert choice.strategy == "as_completed"
