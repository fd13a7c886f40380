"""`EvolveTaskRunner` does what `DaskTaskRunner` does: on worker processes, the API as witness.

Each flow run costs half a second or more, so a test makes few of them and looks at many things.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

import numpy as np
import pytest
from dask import config as dask_config
from dask.base import annotate
from dask.delayed import delayed
from distributed import Client, LocalCluster, get_worker
from prefect import allow_failure, flow, get_run_logger, runtime, tags, task, unmapped
from prefect.assets import Asset, materialize
from prefect.cache_policies import INPUTS
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.exceptions import CrashedRun, UnfinishedRun
from prefect.futures import as_completed, wait
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from prefect.settings.context import get_current_settings
from prefect.states import Completed
from prefect.utilities.annotations import opaque, quote
from prefect_dask.task_runners import PrefectDaskFuture
from prefect_dask.utils import get_async_dask_client, get_dask_client
from pydantic import BaseModel

from evolve_tasks import EvolveTaskRunner
from tests.integration.api import task_runs

R = TypeVar("R")

LIMIT_S = 60.0  # for what takes a second; other tests use the CPUs too

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


# -- clusters ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spy(process_workers: str) -> Iterator[Client]:
    """A client that sees what the scheduler and the workers keep."""
    with Client(process_workers, set_as_default=False) as client:
        yield client


@pytest.fixture
def workers(process_workers: str, spy: Client) -> Iterator[str]:
    """Two worker processes of one thread; whatever a test runs there leaves nothing behind."""
    before = known_keys(spy)
    yield process_workers
    check_nothing_is_left(spy, before)


@pytest.fixture(scope="module")
def single_thread(prefect_api: str) -> Iterator[LocalCluster]:
    """One worker process of one thread, with one slot of a resource."""
    # The scheduler keeps nothing back, so that the order is that of the worker's own queue.
    with (
        dask_config.set({"distributed.scheduler.worker-saturation": "inf"}),
        LocalCluster(
            processes=True,
            n_workers=1,
            threads_per_worker=1,
            resources={"slot": 1},
            dashboard_address=None,
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def lone_worker(single_thread: LocalCluster) -> Iterator[LocalCluster]:
    """A worker on which everything queues; whatever a test runs there leaves nothing behind."""
    with Client(single_thread, set_as_default=False) as client:
        before = known_keys(client)
        yield single_thread
        check_nothing_is_left(client, before)


def known_keys(client: Client) -> set[Any]:
    """The tasks that the scheduler keeps; another test's leftovers are not this one's failure."""
    found: set[Any] = client.run_on_scheduler(lambda dask_scheduler: set(dask_scheduler.tasks))
    return found


def check_nothing_is_left(client: Client, before: set[Any]) -> None:
    """The scheduler has forgotten all tasks, the workers all plugins of a run."""
    until(lambda: known_keys(client) <= before, "the scheduler forgets the tasks", 20)
    until(lambda: not any(client.run(own_plugins).values()), "the workers forget the run", 20)


def services_and_contexts(dask_worker: Any) -> Counter[str]:
    """What of Prefect's a worker process still has in memory."""
    gc.collect()
    kinds = (EventsWorker, APILogWorker, FlowRunContext)
    return Counter(type(one).__name__ for one in gc.get_objects() if isinstance(one, kinds))


def test_nothing_of_a_flow_run_stays_in_the_memory_of_a_worker(workers: str, spy: Client) -> None:
    @task
    def told(x: int) -> int:
        get_run_logger().info("at %d", x)
        return x

    @flow(task_runner=EvolveTaskRunner(address=workers))
    def some() -> list[int]:
        return told.map(range(4)).result()

    def held() -> Counter[str]:
        found: Counter[str] = sum(spy.run(services_and_contexts).values(), Counter())
        return found

    some()
    before = held()
    for _ in range(3):
        assert some() == [0, 1, 2, 3]
    # The last of them is not gone at once: Dask's threads hold on to what they did last.
    until(lambda: held() <= before, "what a run used is gone", LIMIT_S)


def own_plugins(dask_worker: Any) -> list[str]:
    return [name for name in dask_worker.plugins if name.startswith("evolve-")]


# -- flows -------------------------------------------------------------------------------------


def run(where: Any, body: Callable[[], R], **options: Any) -> tuple[UUID, R]:
    """Run `body` in a flow, with a runner or on the cluster at an address.

    Returns:
        The flow run's id and what `body` returned, untouched by Prefect.
    """
    outcome: list[tuple[UUID, R]] = []
    _bodies[key := uuid4().hex] = lambda: outcome.append((flow_run_id(), body()))
    runner = runner_on(where) if isinstance(where, str) else where
    around.with_options(task_runner=runner, **options)(key)
    return outcome[0]


# The flow's function is pickled with what it uses; a body may use what cannot be pickled.
_bodies: dict[str, Callable[[], None]] = {}


@flow(name="runner")
def around(body: str) -> None:
    _call(body)


def _call(body: str) -> None:
    _bodies.pop(body)()


def flow_run_id() -> UUID:
    return UUID(runtime.flow_run.id)


def runner_on(address: str) -> Any:
    """A runner as `flow` takes it: by Prefect's types no runner has futures of its own."""
    return EvolveTaskRunner(address=address)


def own_runner() -> Any:
    """The runner that the current flow run uses."""
    context = FlowRunContext.get()
    assert context is not None
    return context.task_runner


# -- what the API knows ------------------------------------------------------------------------


def until(condition: Callable[[], R], what: str, limit_s: float = LIMIT_S) -> R:
    """Ask until the answer is something; give it."""
    give_up = time.monotonic() + limit_s
    while not (answer := condition()):
        assert time.monotonic() < give_up, f"it did not happen that {what}"
        time.sleep(0.05)
    return answer


def settled(task_run: TaskRun) -> bool:
    state = task_run.state
    return state is not None and (state.is_final() or state.name == "NotReady")


def recorded(run_id: UUID, count: int) -> dict[UUID, TaskRun]:
    """Wait until the API knows how that many task runs ended; these are all there are."""
    known: list[TaskRun] = []

    def all_settled() -> bool:
        known[:] = task_runs(run_id)
        return len(known) >= count and all(map(settled, known))

    try:
        until(all_settled, f"{count} task runs end")
    except AssertionError as error:
        raise AssertionError(f"{error}: {[(run.name, run.state_name) for run in known]}") from None
    assert len(known) == count, [(run.name, run.state_name) for run in known]
    return {run.id: run for run in known}


def edges(task_run: TaskRun) -> dict[str, set[UUID]]:
    """Where each parameter of a task run came from, as the UI draws it."""
    named = {
        name: {UUID(str(value.id)) for value in values if value.input_type == "task_run"}
        for name, values in task_run.task_inputs.items()
    }
    return {name: ids for name, ids in named.items() if ids}


# -- tasks -------------------------------------------------------------------------------------


def loosely(task_: Any) -> Any:
    """Take a task's types away: Prefect's know no `wait_for` alone and no async result."""
    return task_


@loosely
@task
def double(x: Any) -> Any:
    return 2 * x


@loosely
@task
async def double_async(x: int) -> int:
    await asyncio.sleep(0)
    return 2 * x


@loosely
@task
def fails(message: str) -> None:
    raise ValueError(message)


@loosely
@task
async def fails_async(message: str) -> None:
    raise KeyError(message)


@loosely
@task
def nothing() -> None: ...


@task
def shown(value: Any) -> str:
    """What arrives on the worker, with its types."""
    return repr(value)


@task
def kind(value: Any) -> str:
    return type(value).__name__


@task
def add(x: int, y: int, z: Any = 0) -> int:
    return x + y + (z if isinstance(z, int) else sum(z))


@task
def sees() -> dict[str, Any]:
    """The context that a task finds itself in."""
    return {
        "flow_run": runtime.flow_run.id,
        "flow_run_tags": sorted(runtime.flow_run.tags),
        "parameters": runtime.flow_run.parameters,
        "task_run": runtime.task_run.id,
        "tags": sorted(runtime.task_run.tags),
        "setting": get_current_settings().client.max_retries,
        "worker": get_worker().address,
        "pid": os.getpid(),
    }


@task
def waits(gate: str) -> float:
    """Run until the test lets it go on."""
    Path(gate).with_suffix(".waiting").touch()
    until(Path(gate).exists, "the gate opens", 20)
    return time.monotonic()


@task
def moment() -> float:
    return time.monotonic()


def note(diary: str, what: str) -> int:
    """Leave a trace of this execution; give how many there are of its kind."""
    Path(diary, f"{what}.{os.urandom(4).hex()}").touch()
    return len(list(Path(diary).glob(f"{what}.*")))


# -- results and states ------------------------------------------------------------------------


@task
def says_itself(message: str) -> State[Any]:
    return Completed(message=message)


def test_results_and_states(workers: str) -> None:
    called: list[Any] = []

    def body() -> dict[str, PrefectDaskFuture[Any]]:
        one, two = double.submit(1), double_async.submit(2)
        assert isinstance(one, PrefectDaskFuture)
        assert isinstance(two, PrefectDaskFuture)
        one.add_done_callback(called.append)
        assert (one.result(), two.result()) == (2, 4)
        assert one.state.is_completed()
        two.add_done_callback(called.append)
        until(lambda: len(called) == 2, "both callbacks are called")

        mapped, mapped_async = double.map([1, 2, 3]), double_async.map([4, 5])
        assert mapped.result() == [2, 4, 6]
        mapped_async.wait()
        assert [future.result() for future in mapped_async] == [8, 10]
        assert wait([*mapped, one]).not_done == set()
        assert {future.result() for future in as_completed([*mapped])} == {2, 4, 6}

        bad, bad_async = fails.submit("sync"), fails_async.submit("async")
        with pytest.raises(ValueError, match=r"^sync$"):
            bad.result()
        with pytest.raises(KeyError, match="async"):
            bad_async.result()
        assert isinstance(bad.result(raise_on_failure=False), ValueError)
        assert bad.state.is_failed()

        state = double.submit(21, return_state=True)
        assert isinstance(state, State)
        assert state.result() == 42
        failed = fails.submit("a state", return_state=True)
        assert failed.is_failed()
        assert isinstance(failed.result(raise_on_failure=False), ValueError)
        states = double.map([7, 8], return_state=True)
        assert [state.result() for state in states] == [14, 16]
        said = says_itself.submit("said", return_state=True)
        assert (said.is_completed(), said.message) == (True, "said")
        return {"one": one, "two": two, "bad": bad, "bad async": bad_async}

    run_id, futures = run(workers, body)
    assert {future.task_run_id for future in called} == {
        futures["one"].task_run_id,
        futures["two"].task_run_id,
    }
    runs = recorded(run_id, 14)
    assert Counter(run.state_name for run in runs.values()) == {"Completed": 11, "Failed": 3}
    assert runs[futures["bad"].task_run_id].state_name == "Failed"
    for run_ in runs.values():
        assert run_.flow_run_id == run_id
        assert run_.run_count == 1
        assert run_.start_time
        assert run_.end_time
    name, _, suffix = runs[futures["one"].task_run_id].name.rpartition("-")
    assert name == "double"
    assert suffix
    assert str(futures["one"].wrapped_future.key).startswith("double-")


def test_an_async_flow(workers: str) -> None:
    seen: list[UUID] = []

    @flow(task_runner=runner_on(workers))
    async def around_async() -> list[Any]:
        seen.append(flow_run_id())
        first = double.submit(1)
        second = double_async.submit(first)
        direct = await double_async(10)  # in this process, between the others
        third = double.map([second, direct])
        return [first.result(), second.result(), direct, *[each.result() for each in third]]

    assert asyncio.run(around_async()) == [2, 4, 20, 8, 40]
    assert all(run.state_name == "Completed" for run in recorded(seen[0], 5).values())


def test_a_result_that_takes_too_long(workers: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def body() -> None:
        future = waits.submit(str(gate))
        with pytest.raises(TimeoutError):
            future.result(timeout=0.1)
        future.wait(timeout=0.1)
        assert not future.state.is_final()
        assert not wait([future], timeout=0.1).done
        with pytest.raises(TimeoutError):
            list(as_completed([future], timeout=0.1))
        gate.touch()
        assert future.result() > 0

    run(workers, body)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("unpicklable")
        self.lock = threading.Lock()


@task
def lock() -> Any:
    return threading.Lock()


@task
def fails_unpicklably() -> None:
    raise Unpicklable()


def test_what_cannot_be_pickled(lone_worker: LocalCluster) -> None:
    """It may stay where it is; asking for it elsewhere says so, and stops nothing else."""

    def body() -> tuple[UUID, UUID]:
        kept = lock.submit()
        others: Any = double.map([1, 2, 3])
        assert kind.submit(kept).result() == "lock"
        until(lambda: all(each.wrapped_future.done() for each in others), "the others end")
        with pytest.raises(TypeError, match=r"serialize|pickle"):
            kept.result()
        bad: Any = fails_unpicklably.submit()
        bad.wait()
        with pytest.raises(TypeError, match=r"serialize|pickle"):
            bad.result()
        with pytest.raises((TypeError, ValueError), match=r"serialize|pickle"):
            kind.submit(threading.Lock())
        assert others.result() == [2, 4, 6]
        return UUID(str(kept.task_run_id)), bad.task_run_id

    run_id, (kept_id, bad_id) = run(lone_worker.scheduler_address, body)
    runs = recorded(run_id, 6)
    assert (runs[kept_id].state_name, runs[bad_id].state_name) == ("Completed", "Failed")


def test_a_runner_without_a_flow(workers: str) -> None:
    runner = runner_on(workers)
    with pytest.raises(RuntimeError, match="must be started"):
        runner.submit(double, {"x": 1})
    with runner:
        future = runner.submit(double, {"x": 1}, wait_for=[])
        child = runner.submit(double_async, {"x": future})
        mapped = runner.map(double, {"x": [1, 2]})
        assert (child.result(), mapped.result()) == (4, [2, 4])
        assert runner.submit(sees, parameters={}).result()["flow_run"] is None
        bad = runner.submit(task=fails, parameters={"message": "alone"})
        bad.wait()
        assert bad.state.is_failed()
    assert runner.duplicate() == runner


def test_a_cluster_object(lone_worker: LocalCluster) -> None:
    """The cluster itself cannot travel to the workers, where the flow's runner is known too."""
    seen: list[Any] = []

    runner: Any = EvolveTaskRunner(cluster=lone_worker)

    @flow(task_runner=runner)
    def with_object() -> None:
        seen.append(sees.submit().result())

    with_object()
    assert seen[0]["flow_run"]


# -- parameters --------------------------------------------------------------------------------


@dataclass
class Pair:
    left: Any
    right: Any


class Named(NamedTuple):
    left: Any
    right: Any


class Model(BaseModel):
    left: Any
    right: Any


def test_futures_as_parameters(workers: str) -> None:
    expected = {
        "alone": "2",
        "list": "[2, [4], 'x']",
        "dict": "{'a': 2, 'b': {'c': 4}}",
        "tuple": "(2, (4,))",
        "named": "Named(left=2, right=[4])",
        "set": "{2}",
    }

    def body() -> tuple[list[UUID], dict[str, Any], dict[str, Any]]:
        a, b = double.submit(1), double_async.submit(2)
        state = double.submit(3, return_state=True)
        # The client of prefect-dask takes tasks, too, and gives Dask's futures.
        raw = own_runner().client.submit(double, 4)
        values: dict[str, Any] = {
            "alone": a,
            "list": [a, [b], "x"],
            "dict": {"a": a, "b": {"c": b}},
            "tuple": (a, (b,)),
            "named": Named(a, [b]),
            "set": {a},
        }
        shows = {name: shown.submit(value) for name, value in values.items()}
        others = {
            "state": double.submit(state),
            "two": add.submit(a, y=b),
            "after": nothing.submit(wait_for=[a, b]),
            "after one": nothing.submit(wait_for=a),
            "after nested": nothing.submit(wait_for=[[a], state]),
            "of Dask's client": double.submit(raw),
        }
        for future in [*shows.values(), *others.values()]:
            future.wait()
        # Each comes from a task run of its own: all failures at once, by name.
        got = {name: future.result(raise_on_failure=False) for name, future in shows.items()}
        assert got == expected
        assert [others[name].result() for name in ("state", "two")] == [12, 6]
        assert others["of Dask's client"].result() == 16
        upstream = [each.task_run_id for each in (a, b, raw)]
        return [*upstream, state.state_details.task_run_id], shows, others

    run_id, ((a, b, raw, c), shows, others) = run(workers, body)
    runs = recorded(run_id, 16)

    def known(futures: dict[str, Any]) -> dict[str, dict[str, set[UUID]]]:
        return {name: edges(runs[future.task_run_id]) for name, future in futures.items()}

    both = {"value": {a, b}}
    assert known(shows) == {
        **dict.fromkeys(shows, both),
        "alone": {"value": {a}},
        "set": {"value": {a}},
    }
    assert known(others) == {
        "state": {"x": {c}},
        "two": {"x": {a}, "y": {b}},
        "after": {"wait_for": {a, b}},
        "after one": {"wait_for": {a}},
        "after nested": {"wait_for": {a, c}},
        "of Dask's client": {"x": {raw}},
    }


def test_futures_inside_objects(workers: str) -> None:
    def body() -> tuple[set[UUID], list[UUID]]:
        a, b = double.submit(1), double_async.submit(2)
        futures: list[Any] = [
            shown.submit(Pair(a, [b])),
            shown.submit([Model(left=a, right={"k": b})]),
        ]
        assert [future.result() for future in futures] == [
            "Pair(left=2, right=[4])",
            "[Model(left=2, right={'k': 4})]",
        ]
        return {a.task_run_id, b.task_run_id}, [future.task_run_id for future in futures]

    run_id, (upstream, ids) = run(workers, body)
    runs = recorded(run_id, 4)
    assert [edges(runs[id_]) for id_ in ids] == [{"value": upstream}] * 2


def test_mapping(workers: str) -> None:
    def body() -> tuple[UUID, UUID, dict[str, Any]]:
        numbers, one = double.submit([1, 2]), double.submit(1)
        mapped = {
            "a future": double.map(numbers),
            "unmapped": add.map([1, 2], unmapped(one), z=unmapped([10, 20])),
            "futures": add.map([one, 5], [one, one]),
            "after": shown.map([1], wait_for=[one]),
        }
        assert {name: futures.result() for name, futures in mapped.items()} == {
            "a future": [2, 4, 2, 4],
            "unmapped": [33, 34],
            "futures": [4, 7],
            "after": ["1"],
        }
        return numbers.task_run_id, one.task_run_id, mapped

    run_id, (numbers, one, mapped) = run(workers, body)
    runs = recorded(run_id, 2 + sum(map(len, mapped.values())))
    known = {
        name: [edges(runs[future.task_run_id]) for future in futures]
        for name, futures in mapped.items()
    }
    assert known == {
        "a future": [{"x": {numbers}}] * 4,
        "unmapped": [{"y": {one}}] * 2,
        "futures": [{"x": {one}, "y": {one}}, {"y": {one}}],
        "after": [{"wait_for": {one}}],
    }


def test_what_failed_before(workers: str) -> None:
    """A task with a failed input does not run."""

    def body() -> dict[str, Any]:
        bad = fails.submit("the first")
        child = double.submit(bad)
        futures = {
            "bad": bad,
            "child": child,
            "grandchild": double.submit([child]),
            "after": nothing.submit(wait_for=[bad]),
            "after child": nothing.submit(wait_for=[child]),
            "mapped": double.map([bad])[0],
        }
        for future in futures.values():
            future.wait()
        upstream = {
            "child": bad,
            "grandchild": child,
            "after": bad,
            "after child": child,
            "mapped": bad,
        }
        for name, before in upstream.items():
            state = futures[name].state
            assert (name, state.type.value, state.name) == (name, "PENDING", "NotReady")
            assert str(before.task_run_id) in state.message, name
            with pytest.raises(UnfinishedRun):
                futures[name].result()
        return futures

    run_id, futures = run(workers, body)
    runs = recorded(run_id, 6)
    known = {name: runs[future.task_run_id] for name, future in futures.items()}
    states = {name: run.state_name for name, run in known.items()}
    assert states == {**dict.fromkeys(futures, "NotReady"), "bad": "Failed"}
    bad, child = futures["bad"].task_run_id, futures["child"].task_run_id
    assert {name: edges(run) for name, run in known.items()} == {
        "bad": {},
        "child": {"x": {bad}},
        "grandchild": {"x": {child}},
        "after": {"wait_for": {bad}},
        "after child": {"wait_for": {child}},
        "mapped": {"x": {bad}},
    }


def test_failures_that_are_allowed(workers: str) -> None:
    def body() -> dict[str, Any]:
        bad, good = fails.submit("the first"), double.submit(1)
        child = double.submit(bad)
        futures = {
            "bad": bad,
            "child": child,
            "of a future": shown.submit(allow_failure(bad)),
            "inside": shown.submit([allow_failure(bad), 1]),
            "around": shown.submit(allow_failure([bad, good])),
            "of the child": shown.submit(allow_failure(child)),
            "of what did not fail": shown.submit(allow_failure(good)),
            "to wait": double.submit(4, wait_for=[allow_failure(bad)]),
            "mapped": shown.map(allow_failure([bad]))[0],
        }
        for future in futures.values():
            future.wait()
        assert {
            name: future.result() if future.state.is_completed() else future.state.name
            for name, future in futures.items()
        } == {
            "bad": "Failed",
            "child": "NotReady",
            "of a future": "ValueError('the first')",
            "inside": "[ValueError('the first'), 1]",
            "around": "[ValueError('the first'), 2]",
            "of the child": "None",
            "of what did not fail": "2",
            "to wait": 8,
            "mapped": "ValueError('the first')",
        }
        return {"good": good, **futures}

    run_id, futures = run(workers, body)
    runs = recorded(run_id, 10)
    ids = {name: future.task_run_id for name, future in futures.items()}
    bad, good, child = ids["bad"], ids["good"], ids["child"]
    assert {name: edges(runs[id_]) for name, id_ in ids.items()} == {
        "bad": {},
        "good": {},
        "child": {"x": {bad}},
        "of a future": {"value": {bad}},
        "inside": {"value": {bad}},
        "around": {"value": {bad, good}},
        "of the child": {"value": {child}},
        "of what did not fail": {"value": {good}},
        "to wait": {"wait_for": {bad}},
        "mapped": {"value": {bad}},
    }


def test_annotations_are_not_part_of_the_value(workers: str) -> None:
    """Prefect's annotations are tuples, and pickling one wraps its value once more."""

    def body() -> None:
        state = double.submit(2, return_state=True)
        futures = {
            "quoted": shown.submit(quote([1])),
            "quoted inside": shown.submit({"k": [quote((1, 2))]}),
            "quoted state": kind.submit(quote(state)),
            "opaque": shown.submit(opaque([1])),
            "allowed": shown.submit(allow_failure([1])),
            "with a future": shown.submit([quote([1]), double.submit(1)]),
            "mapped": shown.map(quote([[1], [2]]))[1],
        }
        assert {name: future.result() for name, future in futures.items()} == {
            "quoted": "[1]",
            "quoted inside": "{'k': [(1, 2)]}",
            "quoted state": type(state).__name__,
            "opaque": "[1]",
            "allowed": "[1]",
            "with a future": "[[1], 2]",
            "mapped": "[2]",
        }

    run(workers, body)


@task
def like_dask(
    priority: int, resources: str, key: str, workers: int, pure: str, **kwargs: int
) -> str:
    """Parameters that Dask's and the runner's `submit` have as well."""
    return f"{priority} {resources} {key} {workers} {pure} {sorted(kwargs.items())}"


@task
def size_and_sum(array: Any, *others: Any) -> tuple[str, float]:
    return type(array).__name__, float(np.sum(array)) + sum(float(np.sum(each)) for each in others)


@pytest.mark.filterwarnings("ignore:Sending large graph:UserWarning")
def test_parameters_arrive_as_they_are(workers: str) -> None:
    def body() -> None:
        a = double.submit(1)
        a.wait()
        key = str(a.wrapped_future.key)
        # What Dask once took for keys and tasks is a value like any other.
        values = [key, [key], (key,), (key, 0), {"k": key}, ("x", 1), (len, "abc"), {1, 2}, None]
        futures = [shown.submit(value) for value in values]
        assert [future.result() for future in futures] == [repr(value) for value in values]
        named = like_dask.submit(
            priority=1, resources="r", key="k", workers=2, pure="p", retries=3, task=4, func=5
        )
        assert named.result() == "1 r k 2 p [('func', 5), ('retries', 3), ('task', 4)]"

        # A parameter is what it was when it was submitted.
        changing = [1]
        before = shown.submit(changing)
        changing.append(2)
        assert (before.result(), shown.submit(changing).result()) == ("[1]", "[1, 2]")

        large = np.ones(4_000_000)  # 32 MB
        assert size_and_sum.submit(large).result() == ("ndarray", 4e6)
        # Dask's own futures are resolved where they are, also within something.
        client = own_runner().client
        scattered = client.scatter(np.ones(1000))
        summed = client.submit(sum, [1, 2, 3])
        assert size_and_sum.submit(scattered, scattered, summed).result() == ("ndarray", 2006.0)
        assert shown.submit([summed, {"s": summed}]).result() == "[6, {'s': 6}]"

    run(workers, body)


def test_each_submit_is_a_run_of_its_own(workers: str, tmp_path: Path) -> None:
    """Equal parameters make no equal runs, and a task is what it is when it is submitted."""
    diary, factor = str(tmp_path), 1

    @task
    def local(x: int) -> int:
        note(diary, "local")
        return x * factor

    def body() -> list[UUID]:
        nonlocal factor
        once, again = local.submit(5), local.submit(5)
        assert (once.result(), again.result()) == (5, 5)
        factor = 100
        assert local.submit(5).result() == 500
        # Nobody keeps these, so that the next may get the memory address of the last.
        named = [local.with_options(name=f"variant {n}").submit(n) for n in range(12)]
        assert [future.result() for future in named] == [n * 100 for n in range(12)]
        return [future.task_run_id for future in named]

    run_id, named = run(workers, body)
    runs = recorded(run_id, 15)
    assert len(list(tmp_path.iterdir())) == 15
    names = [runs[each].name.rpartition("-")[0] for each in named]
    assert names == [f"variant {n}" for n in range(12)]


# -- contexts ----------------------------------------------------------------------------------


def test_tags_and_settings_are_those_of_the_submit(workers: str) -> None:
    default = get_current_settings().client.max_retries

    def changed(number: int) -> Any:
        return temporary_settings({PREFECT_CLIENT_MAX_RETRIES: number})

    def body() -> dict[str, Any]:
        futures: dict[str, Any] = {"plain": sees.submit()}
        with tags("red"), changed(11):
            futures["red"] = sees.submit()
            with tags("blue"):
                futures["both"] = sees.submit()
                (futures["mapped"],) = shown.map(["x"])
        futures["plain again"] = sees.submit()
        with tags("green"), changed(12):
            futures["green"] = sees.with_options(tags=["own"]).submit()
        # From threads of the flow's own, at the same time.
        with ThreadPoolExecutor(4) as pool:

            def from_thread(n: int) -> Any:
                with tags(f"thread {n}"), changed(100 + n):
                    return sees.submit()

            started = [pool.submit(copy_context().run, from_thread, n) for n in range(4)]
        futures |= {f"thread {n}": each.result() for n, each in enumerate(started)}
        wait(list(futures.values()))
        return futures

    with tags("of the flow"):
        run_id, futures = run(workers, body)
    runs = recorded(run_id, 10)
    expected = {
        "plain": ([], default),
        "red": (["red"], 11),
        "both": (["blue", "red"], 11),
        "plain again": ([], default),
        "green": (["green", "own"], 12),
        **{f"thread {n}": ([f"thread {n}"], 100 + n) for n in range(4)},
    }
    for name, (own, setting) in expected.items():
        found = futures[name].result()
        everything = sorted([*own, "of the flow"])
        assert (name, found["tags"], found["setting"]) == (name, everything, setting)
        assert (name, sorted(runs[futures[name].task_run_id].tags)) == (name, everything)
        assert found["task_run"] == str(futures[name].task_run_id)
        assert found["flow_run"] == str(run_id)
        assert found["flow_run_tags"] == ["of the flow"]
    assert sorted(runs[futures["mapped"].task_run_id].tags) == ["blue", "of the flow", "red"]


def test_two_flow_runs_at_once(workers: str) -> None:
    """On the same workers, with the same runner: neither ever sees anything of the other."""
    together = threading.Barrier(2, timeout=LIMIT_S)
    runner = runner_on(workers)

    def start(name: str, number: int) -> tuple[UUID, Any]:
        def body() -> tuple[Any, list[tuple[int, UUID, dict[str, Any]]]]:
            values = []
            for turn in range(2):
                together.wait()
                setting = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: number})
                with tags(f"{name} {turn}"), setting:
                    futures: Any = [sees.submit() for _ in range(3)]
                values += [(turn, future.task_run_id, future.result()) for future in futures]
            return runtime.flow_run.parameters, values

        with tags(name):
            return run(runner, body)

    settings = {"left": 21, "right": 22}
    with ThreadPoolExecutor(2) as pool:
        started = {
            name: pool.submit(copy_context().run, start, name, number)
            for name, number in settings.items()
        }
        found = {name: each.result() for name, each in started.items()}
    assert found["left"][0] != found["right"][0]
    assert found["left"][1][0] != found["right"][1][0]
    for name, (run_id, (parameters, values)) in found.items():
        runs = recorded(run_id, 6)
        assert {task_run_id for _, task_run_id, _ in values} == set(runs)
        for turn, task_run_id, value in values:
            own = sorted([name, f"{name} {turn}"])
            assert value | {"worker": "", "pid": 0} == {
                "flow_run": str(run_id),
                "flow_run_tags": [name],
                "parameters": parameters,
                "task_run": str(task_run_id),
                "tags": own,
                "setting": settings[name],
                "worker": "",
                "pid": 0,
            }
            assert sorted(runs[task_run_id].tags) == own


# -- what a task asks for ----------------------------------------------------------------------


@task
def logs(number: int) -> None:
    get_run_logger().info("logged %d", number)
    print("printed", number)  # noqa: T201  # it is what `log_prints` is about


def test_log_lines_belong_to_their_task_runs(workers: str) -> None:
    def body() -> list[UUID]:
        futures = [logs.with_options(log_prints=False).submit(0)]
        futures += [logs.submit(n) for n in (1, 2)]  # the flow says that prints are logged
        futures += [logs.with_options(log_prints=True).submit(3)]
        for future in futures:
            future.result()
        return [future.task_run_id for future in futures]

    run_id, ids = run(workers, body, log_prints=True)
    expected = {ids[0]: {"logged 0"}} | {ids[n]: {f"logged {n}", f"printed {n}"} for n in (1, 2, 3)}

    def lines() -> dict[UUID | None, set[str]]:
        with get_client(sync_client=True) as client:
            found = client.read_logs(
                LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200
            )
        own = [line for line in found if re.match("(logged|printed) ", line.message)]
        return {
            run_id: {line.message for line in own if line.task_run_id == run_id}
            for run_id in {line.task_run_id for line in own}
        }

    # Workers send them every two seconds.
    with suppress(AssertionError):
        until(lambda: sum(map(len, lines().values())) >= 7, "all log lines arrive", 15)
    assert lines() == expected


@task(retries=2, retry_delay_seconds=0, task_run_name="attempts of {what}")
def third_time(diary: str, what: str) -> int:
    count = note(diary, what)
    if count < 3:
        raise ValueError("not yet")
    return count


@task(retries=2, retry_delay_seconds=0, task_run_name=lambda: f"named {runtime.task_run.tags}")
async def third_time_async(diary: str, what: str) -> int:
    count = note(diary, what)
    if count < 3:
        raise ValueError("not yet")
    return count


@task(timeout_seconds=0.3)
def too_slow() -> None:
    while True:  # the timeout is raised between two steps of the interpreter
        time.sleep(0.01)


@task(timeout_seconds=0.3)
async def too_slow_async() -> None:
    await asyncio.Event().wait()


def test_retries_names_timeouts_and_hooks(workers: str, tmp_path: Path) -> None:
    diary = str(tmp_path)

    def completed(task_: Any, run: Any, state: Any) -> None:
        note(diary, f"completed {run.id}")

    def failed(task_: Any, run: Any, state: Any) -> None:
        note(diary, f"failed {run.id}")

    def body() -> dict[str, Any]:
        futures = {
            "sync": third_time.submit(diary, "sync"),
            "async": third_time_async.with_options(tags=["t"]).submit(diary, "async"),
            "slow": too_slow.submit(),
            "slow async": too_slow_async.submit(),
            "after slow": nothing.submit(wait_for=[]),
            "good": double.with_options(on_completion=[completed]).submit(1),
            "bad": fails.with_options(on_failure=[failed]).submit("bad"),
        }
        for future in futures.values():
            future.wait()
        assert [futures[name].result() for name in ("sync", "async")] == [3, 3]
        for name in ("slow", "slow async"):
            assert (name, futures[name].state.name) == (name, "TimedOut")
            with pytest.raises(TimeoutError):
                futures[name].result()
        return futures

    run_id, futures = run(workers, body)
    runs = recorded(run_id, 7)
    known = {name: runs[future.task_run_id] for name, future in futures.items()}
    assert known["sync"].run_count == known["async"].run_count == 3
    assert known["sync"].name == "attempts of sync"
    assert known["async"].name == "named ['t']"
    assert known["slow"].state_name == known["slow async"].state_name == "TimedOut"
    traces = {path.name.rpartition(".")[0] for path in tmp_path.iterdir()}
    assert traces == {
        "sync",
        "async",
        f"completed {known['good'].id}",
        f"failed {known['bad'].id}",
    }


@task(cache_policy=INPUTS, persist_result=True)
def once(diary: str, x: int) -> list[int]:
    note(diary, "once")
    return [x]


def test_caches_and_persisted_results(workers: str, tmp_path: Path) -> None:
    diary = str(tmp_path)

    def body() -> dict[str, UUID]:
        first = once.submit(diary, 1)
        first.wait()
        second, other = once.submit(diary, x=1), once.submit(diary, 2)
        assert (first.result(), second.result(), other.result()) == ([1], [1], [2])
        kept = double.with_options(persist_result=True).submit("kept ")
        inherits = double.submit("by the flow ")
        kept.wait()
        inherits.wait()
        futures = {"first": first, "second": second, "kept": kept, "inherits": inherits}
        return {name: future.task_run_id for name, future in futures.items()}

    first_id, first = run(workers, body, persist_result=True)
    second_id, second = run(workers, body, persist_result=True)
    assert len(list(tmp_path.iterdir())) == 2
    runs = recorded(first_id, 5) | recorded(second_id, 5)
    assert runs[first["first"]].state_name == "Completed"
    cached = (first["second"], second["first"], second["second"])
    assert [runs[each].state_name for each in cached] == ["Cached"] * 3
    # What was persisted can be had from the API afterwards, by anybody.
    for name, value in (("first", [1]), ("kept", "kept kept "), ("inherits", "by the flow " * 2)):
        state: Any = runs[first[name]].state
        assert state.result(_sync=True) == value


def test_assets(workers: str) -> None:
    raw, clean = Asset(key="test://runner/raw"), Asset(key="test://runner/clean")
    outside, broken = Asset(key="test://runner/outside"), Asset(key="test://runner/broken")

    @loosely
    @materialize(raw)
    def extract() -> int:
        raw.add_metadata({"rows": 3})
        return 3

    @loosely
    @task
    def between(x: int) -> int:
        return x

    @loosely
    @materialize(clean, asset_deps=[outside])
    async def load(x: int) -> int:
        return x + 1

    @materialize(broken)
    def breaks() -> None:
        raise ValueError("not materialized")

    def body() -> None:
        rows = extract.submit()
        # An asset reaches its user through a task that has none.
        loaded = load.submit(between.submit(rows))
        broken_ = breaks.submit()
        assert loaded.result() == 4
        broken_.wait()

    run_id, _ = run(workers, body)
    recorded(run_id, 4)

    def events() -> list[Any]:
        question = {
            "event": {"prefix": ["prefect.asset."]},
            "related": {"id": [f"prefect.flow-run.{run_id}"]},
        }
        with get_client(sync_client=True) as client:
            answer = client.request("POST", "/events/filter", json={"filter": question})
        found: list[Any] = answer.json()["events"]
        return found

    until(lambda: len(events()) >= 5, "the events arrive")
    found = Counter(
        (
            event["event"].removeprefix("prefect.asset."),
            event["resource"]["prefect.resource.id"],
            tuple(
                sorted(
                    other["prefect.resource.id"]
                    for other in event["related"]
                    if other["prefect.resource.role"] == "asset"
                )
            ),
        )
        for event in events()
    )
    assert found == {
        ("materialization.succeeded", raw.key, ()): 1,
        ("referenced", raw.key, ()): 1,
        ("referenced", outside.key, ()): 1,
        ("materialization.succeeded", clean.key, (outside.key, raw.key)): 1,
        ("materialization.failed", broken.key, ()): 1,
    }
    (rows,) = (
        event["payload"]
        for event in events()
        if event["event"].endswith("succeeded")
        and event["resource"]["prefect.resource.id"] == raw.key
    )
    assert rows == {"rows": 3}


# -- tasks that start more ---------------------------------------------------------------------

NESTED_S = 15.0  # a child that gets no thread would be waited for without end


@task
def child(x: int) -> dict[str, Any]:
    return {
        "x": x,
        "tags": sorted(runtime.task_run.tags),
        "setting": get_current_settings().client.max_retries,
        "flow_run": runtime.flow_run.id,
    }


@task
def parent(n: int) -> dict[str, Any]:
    """Submit, map and wait inside a task, in all the ways there are."""
    before = runtime.task_run.id
    with tags("inside"), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 41}):
        first = child.submit(n)
        assert isinstance(first, PrefectDaskFuture)
        chained = double.submit(double.submit(n))
        mapped = child.map([n, n + 1])
    late = child.submit(n)
    values = [first.result(timeout=NESTED_S), *mapped.result(timeout=NESTED_S)]
    assert not wait([late, chained], timeout=NESTED_S).not_done
    for done in as_completed([late], timeout=NESTED_S):
        values.append(done.result(timeout=NESTED_S))
    assert chained.result(timeout=NESTED_S) == 4 * n
    # Waiting may have cost this thread its place, but not its context.
    assert runtime.task_run.id == before
    return {"values": values, "tags": sorted(runtime.task_run.tags)}


@loosely
@task
async def parent_async(n: int) -> Any:
    return child.submit(n).result()


@task
def direct_parent(n: int) -> tuple[UUID, UUID]:
    """It is called in the flow's own process; what it submits is its child all the same."""
    future: Any = child.submit(n)
    future.wait()
    return UUID(runtime.task_run.id), future.task_run_id


@loosely
@task
def grandparent() -> tuple[str, dict[str, Any]]:
    """It comes after those with a time limit, so that a deadlock has ended the test before."""
    future = parent_async.submit(3)
    return str(future.task_run_id), future.result()


@task
def leaves() -> str:
    """Submit more than there are threads for, and wait for nothing."""
    first = double.submit(1)
    double.submit(first)
    nothing.submit(wait_for=[first])
    return "left"


def check_nested(address: str) -> None:
    def body() -> tuple[UUID, UUID, UUID]:
        with tags("outside"):
            one = parent.submit(1)
        found = one.result(timeout=LIMIT_S)
        assert found["tags"] == ["outside"]
        assert [value["x"] for value in found["values"]] == [1, 1, 2, 1]
        assert [value["tags"] for value in found["values"]] == [["inside", "outside"]] * 3 + [
            ["outside"]
        ]
        default = get_current_settings().client.max_retries
        assert [value["setting"] for value in found["values"]] == [41] * 3 + [default]
        assert {value["flow_run"] for value in found["values"]} == {str(flow_run_id())}
        bystander = nothing.submit()
        two = parent_async.submit(5)
        assert two.result(timeout=LIMIT_S)["x"] == 5
        return one.task_run_id, two.task_run_id, bystander.task_run_id

    run_id, (one, two, bystander) = run(address, body)
    runs = recorded(run_id, 1 + 6 + 1 + 2)
    assert all(run.state_name == "Completed" for run in runs.values())
    parents = {id_: edges(run).get("__parents__", set()) for id_, run in runs.items()}
    assert parents[one] == parents[two] == parents[bystander] == set()
    assert Counter(map(frozenset, parents.values())) == {
        frozenset(): 3,
        frozenset({one}): 6,
        frozenset({two}): 1,
    }
    # The chain inside the parent is drawn too.
    doubles = [run for run in runs.values() if run.name.startswith("double-")]
    assert sorted(len(edges(run).get("x", set())) for run in doubles) == [0, 1]


def test_submits_inside_tasks(workers: str) -> None:
    check_nested(workers)

    def body() -> tuple[tuple[UUID, UUID], UUID]:
        both = direct_parent(1)
        bystander: Any = child.submit(2)
        bystander.wait()
        return both, bystander.task_run_id

    run_id, ((outer, inner), bystander) = run(workers, body)
    runs = recorded(run_id, 3)
    assert edges(runs[inner]) == {"__parents__": {outer}}
    assert edges(runs[outer]) == edges(runs[bystander]) == {}


def test_submits_inside_tasks_on_a_single_thread(lone_worker: LocalCluster) -> None:
    """Who waits for a child gives up the thread for it."""
    check_nested(lone_worker.scheduler_address)

    def body() -> tuple[UUID, str]:
        future = grandparent.submit()
        middle, found = future.result(timeout=LIMIT_S)
        assert found["x"] == 3
        return future.task_run_id, middle

    run_id, (top, middle) = run(lone_worker.scheduler_address, body)
    runs = recorded(run_id, 3)
    assert edges(runs[UUID(middle)]) == {"__parents__": {top}}
    assert Counter(len(edges(run)) for run in runs.values()) == {0: 1, 1: 2}


def test_children_outlive_their_parent(lone_worker: LocalCluster) -> None:
    """As what a flow submits: nobody has to ask for it."""
    run_id, found = run(lone_worker.scheduler_address, lambda: leaves.submit().result())
    assert found == "left"
    assert {run.state_name for run in recorded(run_id, 4).values()} == {"Completed"}


_finds_its_cluster: Any = EvolveTaskRunner()


@flow(name="below", task_runner=_finds_its_cluster)
def below(x: Any, n: int = 2) -> tuple[str, list[Any], list[Any]]:
    """A flow inside something else; on a worker its runner finds the cluster by itself."""
    futures = [sees.submit() for _ in range(n)]
    return runtime.flow_run.id, double.map([x]).result(), [future.result() for future in futures]


@task
def hosts(x: int) -> tuple[str, list[Any], list[Any]]:
    found: tuple[str, list[Any], list[Any]] = below(x)
    return found


def test_flows_inside_flows_and_tasks(workers: str) -> None:
    def body() -> tuple[Any, Any, list[Any]]:
        runner = runner_on(workers)
        with tags("outer"), temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 31}):
            before = double.submit(1)
            here = below.with_options(task_runner=runner)(before)
        there = hosts.submit(5).result()
        after = sees.submit()
        return here, there, [after.task_run_id, after.result()]

    run_id, (here, there, after) = run(workers, body)
    assert (here[1], there[1]) == ([4], [10])
    assert [value["tags"] for value in here[2]] == [["outer"]] * 2
    assert [value["setting"] for value in here[2]] == [31] * 2
    assert [value["tags"] for value in there[2]] == [[]] * 2
    for inner in (here, there):
        assert inner[0] != str(run_id)
        assert [value["flow_run"] for value in inner[2]] == [inner[0]] * 2
        runs = recorded(UUID(inner[0]), 3)
        assert {value["task_run"] for value in inner[2]} < {str(id_) for id_ in runs}
        assert all(run.state_name == "Completed" for run in runs.values())
        assert all("__parents__" not in edges(run) for run in runs.values())
    # The flow that was interrupted by another one goes on as itself.
    assert (after[1]["flow_run"], after[1]["tags"]) == (str(run_id), [])
    names = Counter(run.name.partition("-")[0] for run in recorded(run_id, 5).values())
    assert names == {"double": 1, "hosts": 1, "sees": 1, "below": 2}


# -- Dask, from inside -------------------------------------------------------------------------


@task
def computes(n: int) -> tuple[int, str]:
    with get_dask_client() as client:
        return client.submit(pow, n, 2).result(), runtime.task_run.id


@task
async def computes_async(n: int) -> tuple[int, str]:
    async with get_async_dask_client() as client:
        return await client.submit(pow, n, 3), runtime.task_run.id


@task
def lazy() -> Any:
    return delayed(sum)([1, 2, 3])


@task
def evaluates(value: Any) -> tuple[int, str]:
    return value.compute(), runtime.task_run.id


def test_dask_inside_tasks(workers: str) -> None:
    def body() -> Any:
        # One after the other: a task that waits like this keeps its thread.
        for submit, value in (
            (lambda: computes.submit(5), 25),
            (lambda: computes_async.submit(5), 125),
            (lambda: evaluates.submit(lazy.submit()), 6),
        ):
            future = submit()
            assert future.result(timeout=LIMIT_S) == (value, str(future.task_run_id))
        with get_dask_client() as client:
            assert client.submit(pow, 2, 2).result() == 4
        return nothing.submit().task_run_id

    run_id, last = run(workers, body)
    assert edges(recorded(run_id, 5)[last]) == {}


def check_order(
    cluster: LocalCluster, gate: Path, submit: Callable[[str, dict[str, Any]], Any]
) -> None:
    """Submit behind a task that blocks the only thread; what is urgent comes first."""
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("low", {"priority": -5}),
        ("plain", {}),
        ("slot", {"resources": {"slot": 1}, "priority": 5}),
        ("high", {"priority": 10}),
    ]

    def body() -> tuple[list[str], list[Any]]:
        blocker = waits.submit(str(gate))
        until(gate.with_suffix(".waiting").exists, "the thread is blocked")
        futures = {name: submit(name, options) for name, options in wanted}
        keys = [future.wrapped_future.key for future in futures.values()]
        scheduler: Any = cluster.scheduler
        tasks = scheduler.tasks
        until(lambda: all(key in tasks for key in keys), "the scheduler has them all")
        restrictions = [tasks[key].resource_restrictions or {} for key in keys]
        gate.touch()
        blocker.wait()
        moments = {name: future.result() for name, future in futures.items()}
        return sorted(moments, key=moments.__getitem__), restrictions

    try:
        _, (order, restrictions) = run(cluster.scheduler_address, body)
    finally:
        gate.touch()
    assert order == ["high", "slot", "plain", "low"]
    assert restrictions == [{}, {}, {"slot": 1}, {}]


def test_annotations_around_submit(lone_worker: LocalCluster, tmp_path: Path) -> None:
    def submit(name: str, options: dict[str, Any]) -> Any:
        with annotate(**options):
            return moment.submit()

    check_order(lone_worker, tmp_path / "gate", submit)


def test_priority_and_resources_as_keywords(lone_worker: LocalCluster, tmp_path: Path) -> None:
    def submit(name: str, options: dict[str, Any]) -> Any:
        return own_runner().submit(moment, {}, **options)

    check_order(lone_worker, tmp_path / "gate", submit)


# -- ends --------------------------------------------------------------------------------------


@task
def dies_once(diary: str) -> tuple[int, str]:
    if note(diary, "lives") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid(), runtime.task_run.id


def test_a_killed_worker_is_replaced(workers: str, spy: Client, tmp_path: Path) -> None:
    def addresses() -> set[str]:
        found: set[str] = spy.run_on_scheduler(lambda dask_scheduler: set(dask_scheduler.workers))
        return found

    def body() -> dict[str, Any]:
        kept = sees.submit()
        victim, before = kept.result(), addresses()
        os.kill(victim["pid"], signal.SIGKILL)
        until(lambda: victim["worker"] not in addresses(), "the scheduler misses the worker")
        until(lambda: len(addresses()) == len(before), "another one takes its place")
        (fresh,) = addresses() - before
        # The very worker that was not there when the flow began.
        with annotate(workers=[fresh]), tags("fresh"):
            there = sees.submit()
        # Its value went down with the worker.
        needs = kind.submit(kept)
        assert there.result()["worker"] == fresh
        assert there.result()["pid"] != victim["pid"]
        assert needs.result() == "dict"
        dying = dies_once.submit(str(tmp_path))
        assert dying.result()[1] == str(dying.task_run_id)
        until(lambda: len(addresses()) == len(before), "all workers are back")
        return {"kept": kept, "there": there, "needs": needs, "dying": dying}

    run_id, futures = run(workers, body)
    runs = recorded(run_id, 4)
    assert all(run.state_name == "Completed" for run in runs.values())
    there = futures["there"].result()
    assert (there["tags"], there["flow_run"]) == (["fresh"], str(run_id))
    assert runs[futures["there"].task_run_id].tags == ["fresh"]
    assert edges(runs[futures["needs"].task_run_id]) == {"value": {futures["kept"].task_run_id}}


@task
def exits(x: int) -> None:
    sys.exit(x)


@task
async def interrupts(x: int) -> None:
    raise KeyboardInterrupt(x)


@task(retries=1, timeout_seconds=60)
def exits_in_time(x: int) -> None:
    sys.exit(x)


def test_a_task_that_leaves_python_costs_no_worker(workers: str, spy: Client) -> None:
    """Dask ends a worker whose task raises `SystemExit`, and then the next that gets the task."""
    before = set(spy.scheduler_info(n_workers=-1)["workers"])

    def body() -> dict[str, Any]:
        futures = {
            "exit": exits.submit(3),
            "interrupt": interrupts.submit(4),
            "in time": exits_in_time.submit(5),
        }
        futures["after"] = double.submit(futures["exit"])
        for future in futures.values():
            future.wait()
        return futures

    run_id, futures = run(workers, body)
    states = {name: future.state for name, future in futures.items()}
    assert {name: state.name for name, state in states.items()} == {
        "exit": "Crashed",
        "interrupt": "Crashed",
        "in time": "Crashed",
        "after": "NotReady",
    }
    with pytest.raises(CrashedRun, match="system exit"):
        futures["exit"].result()
    runs = recorded(run_id, 4)
    for name, future in futures.items():
        told = runs[future.task_run_id]
        assert (name, told.state_name) == (name, states[name].name)
        if name != "after":
            assert told.state.message == states[name].message
    assert set(spy.scheduler_info(n_workers=-1)["workers"]) == before


def test_a_flow_waits_for_what_it_submitted(workers: str, tmp_path: Path) -> None:
    """A flow that returns without asking for its results does not lose them."""
    gate = tmp_path / "gate"

    def body() -> UUID:
        first = waits.submit(str(gate))
        double.submit(first)
        double_async.map([1, 2, 3], wait_for=[first])
        # Nobody asked for its result: the flow is none the worse for it.
        bad = fails.submit("late", wait_for=[first])
        gate.touch()  # nothing can have ended before the flow does
        return UUID(str(bad.task_run_id))

    run_id, bad = run(workers, body)
    runs = recorded(run_id, 6)
    assert runs.pop(bad).state_name == "Failed"
    assert {run.state_name for run in runs.values()} == {"Completed"}


class Warned(logging.Handler):
    """Collects warnings; the first one that names a number opens the gate."""

    def __init__(self, gate: Path) -> None:
        super().__init__(logging.WARNING)
        self.gate = gate
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING and re.search(r"\b3\b", record.getMessage()):
            self.lines.append(record.getMessage())
            self.gate.touch()


def test_a_flow_that_raises_says_what_it_leaves(workers: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    warned = Warned(gate)
    loggers = [logging.getLogger(name) for name in ("prefect", "prefect.flow_runs", "evolve_tasks")]
    seen: list[UUID] = []

    def body() -> None:
        seen.append(flow_run_id())
        done = double.submit(1)
        done.wait()
        first = waits.submit(str(gate))
        double.submit(first)
        double.submit(first)
        until(gate.with_suffix(".waiting").exists, "the first one runs")
        raise RuntimeError("the flow's own")

    for logger in loggers:
        logger.addHandler(warned)
    try:
        with pytest.raises(RuntimeError, match=r"^the flow's own$"):
            run(workers, body)
    finally:
        gate.touch()
        for logger in loggers:
            logger.removeHandler(warned)
    assert warned.lines, "no warning named the 3 pending tasks"
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(seen[0]).state_name == "Failed"
    # Waited for or cancelled: nothing stays open.
    until(lambda: all(map(settled, task_runs(seen[0]))), "all task runs end")


def test_a_flow_that_raises_does_not_wait_for_what_cannot_begin(workers: str) -> None:
    """No worker has the resource; waiting for it would hold the failed flow run for ever."""
    seen: list[Any] = []

    def body() -> None:
        with annotate(resources={"nowhere": 1}):
            seen.append(double.submit(1))
        raise RuntimeError("the flow's own")

    with pytest.raises(RuntimeError, match=r"^the flow's own$"):
        run(workers, body)
    assert seen[0].wrapped_future.cancelled()
