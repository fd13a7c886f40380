"""Stages as they are called on a worker, without a flow and without Prefect's engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any
from uuid import uuid4

import cloudpickle
import pytest
from prefect import task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed

from evolve_tasks.stages import Stage, stages_from
from evolve_tasks.workers.bound import BoundStage, UnitContext, contexts
from evolve_tasks.workers.calls import Recording
from evolve_tasks.workers.engines import unwrapped
from evolve_tasks.workers.gathering import Kept, gather, was_cut
from evolve_tasks.workers.task_runs import Parameters, first_parameter
from evolve_tasks.workers.timed import TimedThreads

noted: ContextVar[str] = ContextVar("noted", default="nothing")


def bound(stage: Stage, most_items: int | None = None) -> BoundStage:
    return BoundStage(stage, (), TimedThreads(), most_items)


def value_of(stage: Stage, item: Any, most_items: int | None = None) -> Any:
    ran = bound(stage, most_items).call(item)
    assert ran.error is None, ran.error
    return ran.value


async def counting(step: int, source: int) -> AsyncIterator[int]:
    for number in range(source):
        yield number * step


class Counting:
    async def __call__(self, step: int, source: int) -> AsyncIterator[int]:
        async for number in counting(step, source):
            yield number


class Parser:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    @task
    def parse(self, path: str) -> list[str]:
        return [self.mark + path]

    @task
    def yielding(self, path: str) -> Iterator[str]:
        yield self.mark + path

    @task
    async def yielding_async(self, path: str) -> AsyncIterator[str]:
        yield self.mark + path

    @task
    @classmethod
    def of_class(cls, path: str) -> list[str]:
        return [cls.__name__ + path]


def notes(item: str) -> str:
    before = noted.get()
    noted.set(item)
    return before


def takes(item: int, *more: int, factor: int = 2, **others: int) -> None: ...


def takes_any(*items: int) -> None: ...


def pairs(source: str, results: list[int], failures: list[int] = []) -> None: ...  # noqa: B006


@pytest.mark.parametrize(
    "first",
    [
        partial(counting, 2),
        task(partial(counting, 2), name="bound"),
        partial(partial(counting), 2),
        partial(Counting(), 2),
    ],
    ids=["function", "task", "twice", "object"],
)
def test_an_async_generator_is_one_with_bound_arguments_too(first: Any) -> None:
    assert value_of(stages_from([first, len])[0], 3) == [0, 2, 4]


def test_the_limit_of_items_does_not_cut_a_result() -> None:
    first, last = stages_from([partial(counting, 1), partial(counting, 1)])
    assert value_of(first, 9, most_items=2) == [0, 1, 2]
    assert value_of(last, 9, most_items=2) == list(range(9))


@pytest.mark.parametrize("name", ["parse", "yielding", "yielding_async"])
def test_a_task_that_is_a_method_keeps_its_object(name: str) -> None:
    stages = stages_from([getattr(Parser("a"), name), len])
    getattr(Parser("b"), name)  # which Prefect notes on the function of both
    for stage in (stages[0], cloudpickle.loads(cloudpickle.dumps(stages))[0]):
        assert value_of(stage, "x") == ["ax"]
        assert first_parameter(bound(stage).task or stage.function) == "path"
        told = bound(stage).parameters("x")
        assert (told["self"].mark, told["path"]) == ("a", "x")


def test_a_task_that_is_a_class_method() -> None:
    stage, _ = stages_from([Parser.of_class, len])
    assert value_of(stage, "x") == ["Parserx"]


def test_what_one_item_sets_does_not_reach_the_next() -> None:
    stage = stages_from([list, notes])[1]
    with UnitContext(bound(stage), Recording(), uuid4(), "unit") as unit:
        assert [unit.run(item, uuid4(), "").value for item in "ab"] == ["nothing", "nothing"]
    assert noted.get() == "nothing"


@task
def in_which_run(_: str) -> str:
    context = TaskRunContext.get()
    assert context is not None
    return context.task_run.name


@pytest.mark.parametrize("recording", [Recording(), Recording(unit=uuid4())])
def test_each_source_has_its_name_where_no_run_is_open(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit may have an id for a task run that it does not get: its stage is a function."""
    client = SyncPrefectClient("http://127.0.0.1:9/api")  # nobody asks it for anything
    monkeypatch.setattr("evolve_tasks.workers.bound.get_client", lambda **_: client)
    around = contexts(bound(stages_from([list, in_which_run])[1]), recording)
    names = []
    for source in "ab":
        with around(uuid4(), f"list[{source}]") as unit:
            names.append(unit.run("item", None, "").value)
    assert names == ["list[a]", "list[b]"]


@pytest.mark.parametrize(
    ("function", "arguments", "wanted"),
    [
        (takes, (1,), {"item": 1, "more": (), "factor": 2, "others": {}}),
        (takes, (1, 5), {"item": 1, "more": (5,), "factor": 2, "others": {}}),
        (takes_any, (1,), {"items": (1,)}),
        (pairs, ("s", [1]), {"source": "s", "results": [1], "failures": []}),
        (pairs, ("s", [1], [2]), {"source": "s", "results": [1], "failures": [2]}),
    ],
)
def test_parameters_are_those_that_prefect_tells(
    function: Callable[..., Any], arguments: tuple[Any, ...], wanted: dict[str, Any]
) -> None:
    parameters = Parameters(task(function))
    for _ in range(2):
        assert parameters.of(arguments) == wanted
    assert list(parameters.of(arguments)) == list(wanted)


def test_it_is_known_whether_more_was_there() -> None:
    with Kept():
        assert gather(iter(range(3)), 3) == [0, 1, 2]
        assert not was_cut()
        assert gather(iter(range(9)), 3) == [0, 1, 2, 3]
        assert was_cut()
        assert gather(iter(range(3)), None) == [0, 1, 2]
        assert not was_cut()
    assert not was_cut()


def test_a_completed_state_without_a_value_stands_for_none() -> None:
    state: State[Any] = Completed(message="skipped")
    assert unwrapped(state) is None
    assert unwrapped(Completed(data=3)) == 3
