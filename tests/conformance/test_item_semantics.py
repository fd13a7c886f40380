"""What a user's `@task` asks for holds for each item, however items are batched and recorded.

Retries and their delays and conditions, time limits also for blocking code, hooks, the cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import UUID

import anyio
import pytest
from prefect import Task, flow, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings
from prefect.tasks import exponential_backoff

from evolve_tasks import EvolveFailed, EvolveTaskRunner, Outcome, evolve

STRATEGIES = ["sequential", "as_completed", "async", "nested"]
BATCHES: list[int | str] = [1, 7, "auto"]
RECORDS = ["items", "batches", "sources", "auto"]
LIMIT_S = 0.5  # of an attempt; one that does not hang takes a hundredth
AT_ONCE_S = 30.0  # for what takes seconds if nothing waits for what hangs
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
    "one": ("fine", KINDS),
    "two": ("flaky", ["fine"]),
    "three": ("hangs", ["fine"]),
    "four": ("fine", []),
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
    # The limit counts from before the attempt was noted.
    least_s = LIMIT_S / 2 if kind.startswith("hangs") else 0.0
    assert all(took >= least_s + delay for took, delay in zip(took_s, delays_s, strict=False))
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

    # Each attempt logs a few lines, and sending them would take longer than all the rest.
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: False}):
        around()
    return ids[0]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_that_a_task_asks_for_holds_for_each_item(
    strategy: str, batch: int | str, thread_workers: str
) -> None:
    def outcomes(record: str) -> list[Outcome]:
        ended: list[Outcome] = []
        options = {"batch": batch, "record": record}

        def body() -> None:
            sources = [f"{record} {source}" for source in SOURCES]
            ended.append(outcome_of(strategy, sources, parse, process, **options))
            if batch == 7:  # for async tasks nothing of it is different with others
                one = [f"{record} one"]
                ended.append(outcome_of(strategy, one, parse_plainly, process_async, **options))

        run_in_flow(EvolveTaskRunner(address=thread_workers), body)
        return ended

    began = time.monotonic()
    # All at the same time: most of it is waiting for limits and delays.
    with ThreadPoolExecutor(len(RECORDS)) as flows:
        ended = list(flows.map(outcomes, RECORDS))
    assert time.monotonic() - began < AT_ONCE_S
    for record, (outcome, *of_async) in zip(RECORDS, ended, strict=True):
        check_sync(outcome, record)
        for one in of_async:
            check_async(one, record)
