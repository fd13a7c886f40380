"""What a user's `@task` asks for holds for each item, however items are batched and recorded.

Retries and their delays and conditions, time limits also for blocking code, hooks, the cache.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import UUID

import anyio
import pytest
from distributed import get_client, get_worker
from prefect import Task, flow, task
from prefect.cache_policies import INPUTS
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.tasks import exponential_backoff

from evolve_tasks import EvolveFailed, EvolveTaskRunner, Outcome, evolve
from tests.integration.api import task_runs

STRATEGIES = ["sequential", "as_completed", "async", "nested"]
BATCHES: list[int | str] = [1, 7, "auto"]
RECORDS = ["items", "batches", "sources", "auto"]
LIMIT_S = 1.5  # of an attempt; one that does not hang takes a hundredth, but for other load
AT_ONCE_S = 90.0  # for what takes seconds if nothing waits for what hangs
HANG_S = 120.0
DELAYS_S = [0.04, 0.08]
PAUSE_S = 0.05
JITTER = 0.5
AT_LEAST = 1 - JITTER  # of a delay is left, when it is varied

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("prefect_api")]


@dataclass
class Seen:
    """What the tasks and hooks of this process noted."""

    attempts: dict[str, list[float]] = field(default_factory=dict)  # when each began
    hooks: dict[str, list[str]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)


seen = Seen()


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    """Begin with nothing noted; at the end let go of what hangs, so that its threads end."""
    global seen
    seen = Seen()
    # Each attempt logs a few lines, and sending them would take longer than all the rest.
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield
    seen.over.set()


# A task is pickled with all that its function names, but for the functions of a module: they
# are found again by their names, and with them what this process has noted.


def attempt_of(name: str) -> int:
    """Note an attempt of the task run of this name; give its number, from 1 on."""
    with seen.lock:
        began = seen.attempts.setdefault(name, [])
        began.append(time.monotonic())
        return len(began)


def note_hook(name: str, kind: str) -> None:
    with seen.lock:
        seen.hooks.setdefault(name, []).append(kind)


def hang() -> None:
    """Block in C code until the test is over."""
    seen.over.wait(HANG_S)


def noted(kind: str) -> Any:
    """A hook that notes under the task run's name that it ran."""

    def hook(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> None:
        note_hook(task_run.name, kind)

    return hook


HOOKS: dict[str, Any] = {
    "on_running": [noted("running")],
    "on_completion": [noted("completion")],
    "on_failure": [noted("failure")],
}


class Refused(Exception):
    """What is not worth another attempt."""


def worth_retrying(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Look at the error, and give what hangs one more attempt only."""
    if isinstance(state.data, TimeoutError):
        return task_run.run_count < 2
    return not isinstance(state.data, Refused)


def act(kind: str, name: str) -> int:
    """Do what an item of some kind does; give the number of the attempt."""
    attempt = attempt_of(name)
    if kind == "hangs" or (kind == "hangs once" and attempt == 1):
        hang()
    elif kind == "refused":
        raise Refused(f"{name} at attempt {attempt}")
    elif kind == "fails" or (kind == "flaky" and attempt < 3):
        raise ConnectionError(f"{name} at attempt {attempt}")
    return attempt


Item = tuple[str, str]  # the name that its task run has, and its kind


@task(
    retries=2,
    retry_delay_seconds=DELAYS_S,
    retry_jitter_factor=JITTER,
    retry_condition_fn=worth_retrying,
    timeout_seconds=LIMIT_S,
    **HOOKS,
)
def process(item: Item) -> str:
    """Act as the item says."""
    name, kind = item
    act(kind, name)
    return name


KINDS = ["fine", "flaky", "hangs", "refused", "fails", "hangs once", "fine"]
# Sources: their own kind, and the kinds of their items.
SOURCES = {
    "one": ("flaky", KINDS),
    "two": ("fine", ["fine"]),
    "three": ("hangs", ["fine"]),
}


def items_of(source: str, last: str = "process") -> list[Item]:
    """Items of a source of one of the runs that go on together: its name begins with the run's."""
    _, kinds = SOURCES[source.split()[-1]]
    return [(f"{last}[{source} {i}]", kind) for i, kind in enumerate(kinds)]


@task(
    retries=2,
    retry_delay_seconds=PAUSE_S,
    retry_condition_fn=worth_retrying,
    timeout_seconds=LIMIT_S,
    **HOOKS,
)
def parse(source: str) -> list[Item]:
    """Act as the source says, give its items."""
    act(SOURCES[source.split()[-1]][0], f"parse[{source}]")
    return items_of(source)


def parse_plainly(source: str) -> list[Item]:
    """Give the items of a source, for `process_async`."""
    return items_of(source, "process_async")


@task(
    retries=2,
    retry_delay_seconds=exponential_backoff(0.04),
    retry_condition_fn=worth_retrying,
    timeout_seconds=LIMIT_S,
    **HOOKS,
)
async def process_async(item: Item) -> str:
    """Act as the item says; what hangs waits as async code does."""
    name, kind = item
    if kind.startswith("hangs"):
        if attempt_of(name) == 1 or kind == "hangs":
            await anyio.sleep(HANG_S)
    else:
        act(kind, name)
    return name


@task(timeout_seconds=LIMIT_S)
def yield_some(source: str) -> Iterator[Item]:
    """Give the items one by one; what hangs does so in between."""
    for item in items_of(source):
        yield item
        if SOURCES[source.split()[-1]][0] == "hangs":
            hang()


def parse_plainly_sync(source: str) -> list[Item]:
    """Give the items of a source, for `process`."""
    return items_of(source)


def name_of(item: Item) -> str:
    return item[0]


@task(cache_policy=INPUTS, persist_result=True)
def parse_once(source: str) -> list[Item]:
    """Note that it ran, and give three items."""
    attempt_of(f"parse_once[{source}]")
    return [(source, str(i)) for i in range(3)]


@task(cache_policy=INPUTS, persist_result=True)
def process_once(item: Item) -> str:
    """Note that it ran."""
    source, position = item
    attempt_of(f"process_once[{source} {position}]")
    return f"{source} {position}"


def one_item(source: int) -> list[int]:
    return [source]


def two_items(source: int) -> list[int]:
    return [source * 10, source * 10 + 1]


@task(timeout_seconds=AT_ONCE_S)
def evolves_itself(n: int) -> list[int]:
    """Ask Dask and Prefect where it is, and wait for work of its own."""
    get_run_logger().info("on %s", get_worker().address)
    context = TaskRunContext.get()
    assert context is not None
    assert context.task_run.name == f"evolves_itself[{n} 0]"
    assert get_client().scheduler is not None
    return evolve([n], two_items, abs, strategy="as_completed").results


# What each kind must come to: attempts, and the error of the last one.
ENDS: dict[str, tuple[int, str | None]] = {
    "fine": (1, None),
    "flaky": (3, None),
    "fails": (3, "ConnectionError"),
    "refused": (1, "Refused"),
    "hangs": (2, "TaskRunTimeoutError"),
    "hangs once": (2, None),
}


def outcome_of(strategy: str, sources: Any, first: Any, last: Any, **options: Any) -> Outcome:
    """Evolve, and give the outcome whether or not it was accepted."""
    try:
        return evolve(sources, first, last, strategy=strategy, **options)
    except EvolveFailed as failed:
        return failed.outcome


def check_ended(name: str, kind: str, outcome: Outcome, delays_s: list[float]) -> None:
    """Hold what was noted of one item against what its kind must come to."""
    attempts, error = ENDS[kind]
    began = seen.attempts[name]
    assert len(began) == attempts, (name, kind)
    took_s = [later - sooner for sooner, later in pairwise(began)]
    assert all(took >= delay for took, delay in zip(took_s, delays_s, strict=False)), took_s
    # Prefect calls the first kind of hook at the start of each attempt.
    assert seen.hooks[name] == ["running"] * attempts + ["failure" if error else "completion"]
    failures = {
        f"{one.stage}[{one.source}{''.join(f' {i}' for i in one.index[1:])}]": one
        for one in outcome.failures
    }
    assert (name in failures) == (error is not None)
    if error is None:
        return
    failure = failures[name]
    assert (failure.error_type, failure.attempts) == (error, attempts)
    if kind == "hangs" and not name.startswith("process_async"):
        assert "HANG_S" in failure.traceback, failure.traceback  # where it was
    elif kind != "hangs":
        assert f"attempt {attempts}" in failure.message
        assert "in act" in failure.traceback
        assert "/prefect/" not in failure.traceback


def check_sync(outcome: Outcome, run: str) -> None:
    wanted = []
    for source, (kind, _) in SOURCES.items():
        check_ended(f"parse[{run} {source}]", kind, outcome, [PAUSE_S] * 2)
        if kind == "hangs":
            continue
        for name, kind_of_item in items_of(f"{run} {source}"):
            check_ended(name, kind_of_item, outcome, [AT_LEAST * delay for delay in DELAYS_S])
            wanted += [name] if ENDS[kind_of_item][1] is None else []
    assert outcome.results == wanted
    assert [one.index for one in outcome.failures] == [(0, 2), (0, 3), (0, 4), (2,)]


def check_async(outcome: Outcome, run: str) -> None:
    items = items_of(f"{run} one", "process_async")
    assert outcome.results == [name for name, kind in items if ENDS[kind][1] is None]
    for name, kind in items:
        check_ended(name, kind, outcome, [0.04, 0.08])
    assert [one.index for one in outcome.failures] == [(0, 2), (0, 3), (0, 4)]


def run_in_flow(runner: Any, body: Any) -> UUID:
    """Run `body` in a flow; give the id of its run."""
    ids: list[UUID] = []

    @flow(name="item semantics", task_runner=runner)
    def around() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        ids.append(context.flow_run.id)
        body()

    around()
    return ids[0]


# Batches of seven have all that a batch may have; `make matrix` takes each combination.
COMBINATIONS = [
    (strategy, batch)
    for strategy in STRATEGIES
    for batch in BATCHES
    if batch == 7 or strategy == "as_completed" or os.environ.get("EVOLVE_MATRIX")
]


@pytest.mark.parametrize(("strategy", "batch"), COMBINATIONS)
def test_all_that_a_task_asks_for_holds_for_each_item(
    strategy: str, batch: int | str, thread_workers: str
) -> None:
    def outcomes(record: str) -> list[Outcome]:
        ended: list[Outcome] = []
        options = {"batch": batch, "record": record}

        def body() -> None:
            sources = [f"{record} {source}" for source in SOURCES]
            ended.append(outcome_of(strategy, sources, parse, process, **options))
            # For async tasks there is one way with task runs and one without.
            if batch == 7 and record in ("items", "sources"):
                one = [f"{record} one"]
                ended.append(outcome_of(strategy, one, parse_plainly, process_async, **options))

        run_in_flow(EvolveTaskRunner(address=thread_workers), body)
        return ended

    began = time.monotonic()
    # All at the same time: most of it is waiting for limits and delays.
    # Among so few items "auto" is "items"; once is enough.
    records = RECORDS if batch == "auto" else [one for one in RECORDS if one != "auto"]
    with ThreadPoolExecutor(len(records)) as flows:
        running = [flows.submit(copy_context().run, outcomes, record) for record in records]
        ended = [one.result() for one in running]
    assert time.monotonic() - began < AT_ONCE_S
    for record, (outcome, *of_async) in zip(records, ended, strict=True):
        check_sync(outcome, record)
        for one in of_async:
            check_async(one, record)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_generator_that_hangs_between_items_is_left(strategy: str, thread_workers: str) -> None:
    outcomes: list[Outcome] = []

    def body() -> None:
        sources = ["run one", "run three"]
        options = {"record": "sources", "batch": 7}
        outcomes.append(outcome_of(strategy, sources, yield_some, name_of, **options))

    run_in_flow(EvolveTaskRunner(address=thread_workers), body)
    (outcome,) = outcomes
    first = items_of("run three")[0]  # it had come before
    assert outcome.results == [name for name, _ in [*items_of("run one"), first]]
    (failure,) = outcome.failures
    assert (failure.index, failure.error_type) == ((1,), "TaskRunTimeoutError")
    assert failure.message.endswith("(items given before: 1; they are worked on)")
    assert "in yield_some" in failure.traceback


@pytest.mark.parametrize("record", ["items", "batches"])
def test_the_api_shows_whose_time_was_over(record: str, thread_workers: str) -> None:
    def body() -> None:
        outcome_of("as_completed", ["run one"], parse_plainly_sync, process, record=record, batch=7)

    flow_run = run_in_flow(EvolveTaskRunner(address=thread_workers), body)
    state_of = {run.name: run.state for run in task_runs(flow_run)}
    state = state_of["process[run one 2]"]
    assert state is not None
    assert state.name == "TimedOut"
    assert state.message == f"Task run exceeded timeout of {LIMIT_S} second(s)"
    for name, kind in items_of("run one"):
        if ENDS[kind][1] is not None or record == "items":
            state = state_of[name]
            assert state is not None
            assert state.is_failed() == (ENDS[kind][1] is not None)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("record", ["items", "sources"])
def test_equal_items_are_taken_from_the_cache(
    strategy: str, record: str, thread_workers: str
) -> None:
    outcomes: list[Outcome] = []
    run = f"{strategy} {record}"

    def body() -> None:
        for _ in range(2):
            options = {"record": record, "batch": 2}
            outcomes.append(outcome_of(strategy, [run], parse_once, process_once, **options))

    run_in_flow(EvolveTaskRunner(address=thread_workers), body)
    assert [outcome.results for outcome in outcomes] == [[f"{run} {i}" for i in range(3)]] * 2
    names = [f"parse_once[{run}]", *(f"process_once[{run} {i}]" for i in range(3))]
    assert {name: len(began) for name, began in seen.attempts.items()} == dict.fromkeys(names, 1)


def test_what_is_submitted_has_its_time_too(thread_workers: str) -> None:
    states: list[State[Any]] = []

    def body() -> None:
        began = time.monotonic()
        futures = process.map([("hanging", "hangs"), ("good", "fine"), ("bad", "flaky")])
        futures.wait()
        states.extend(future.state for future in futures)
        assert time.monotonic() - began < AT_ONCE_S

    run_in_flow(EvolveTaskRunner(address=thread_workers), body)
    assert [state.name for state in states] == ["TimedOut", "Completed", "Completed"]
    assert {name: len(began) for name, began in seen.attempts.items()} == {
        "hanging": 2,
        "good": 1,
        "bad": 3,
    }


def test_a_task_with_a_limit_may_use_its_worker(thread_workers: str) -> None:
    outcomes: list[Outcome] = []

    def body() -> None:
        # More of them than the worker has threads: each has to give its place away.
        outcomes.append(
            outcome_of("as_completed", list(range(6)), one_item, evolves_itself, batch=1)
        )

    run_in_flow(EvolveTaskRunner(address=thread_workers), body)
    (outcome,) = outcomes
    assert not outcome.failures, outcome.failures[0].traceback
    assert outcome.results == [[n * 10, n * 10 + 1] for n in range(6)]


def test_the_main_thread_waits_no_longer(thread_workers: str) -> None:
    # The flows above ran in threads, so that they could run together.
    ended: list[Outcome] = []

    def body() -> None:
        assert threading.current_thread() is threading.main_thread()
        ended.append(outcome_of("sequential", [f"main {one}" for one in SOURCES], parse, process))

    run_in_flow(EvolveTaskRunner(address=thread_workers), body)
    check_sync(ended[0], "main")
