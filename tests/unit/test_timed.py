"""Functions with a time limit: they end in time, and leave nothing wrong behind."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from distributed import rejoin
from distributed.threadpoolexecutor import ThreadPoolExecutor, secede, thread_state
from prefect.task_engine import TaskRunTimeoutError

from evolve_tasks.workers.timed import OVERRAN, TimedThreads

LONG_S = 60.0  # what should not be waited for
SHORT_S = 0.1
LOGGER = logging.getLogger("test-timed")


@pytest.fixture
def threads() -> Iterator[TimedThreads]:
    made = TimedThreads()
    yield made
    made.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a function blocks on; open at the end, so that no thread is left to other tests."""
    opened = threading.Event()
    yield opened
    opened.set()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """The thread pool of a Dask worker with one thread."""
    made = ThreadPoolExecutor(1)
    yield made
    made.shutdown(timeout=10)


def call(threads: TimedThreads, function: Any, timeout_s: float = LONG_S, name: str = "t") -> Any:
    return threads.call(function, timeout_s, name=name, logger=LOGGER)


def overruns(threads: TimedThreads, function: Any, name: str = "t") -> TaskRunTimeoutError:
    with pytest.raises(TaskRunTimeoutError) as raised:
        call(threads, function, SHORT_S, name)
    return raised.value


def gone(name: str) -> bool:
    """Whether the thread that was left behind ends within some time."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(one.name == f"{OVERRAN} {name}" for one in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


def test_values_and_errors_come_back(threads: TimedThreads) -> None:
    error = SystemExit(3)

    def exits() -> None:
        raise error

    assert call(threads, lambda: 7) == 7
    with pytest.raises(SystemExit) as raised:
        call(threads, exits)
    assert raised.value is error


def test_context_variables_come_along_and_changes_stay_there(threads: TimedThreads) -> None:
    variable: ContextVar[int] = ContextVar("variable")
    variable.set(1)

    def change() -> int:
        before = variable.get()
        variable.set(2)
        return before

    assert call(threads, change) == 1
    assert variable.get() == 1


def test_a_blocking_call_is_left_behind_in_time(
    threads: TimedThreads, gate: threading.Event
) -> None:
    def block() -> str:
        gate.wait(LONG_S)
        return "late"

    began = time.monotonic()
    error = overruns(threads, block, "blocks")
    assert time.monotonic() - began < SHORT_S + 5
    assert "blocks" in str(error)
    assert "gate.wait(LONG_S)" in "".join(error.__notes__)
    assert call(threads, lambda: "next") == "next"
    gate.set()
    assert gone("blocks")
    assert call(threads, lambda: "after") == "after"


def test_a_late_error_is_nobodys(threads: TimedThreads, gate: threading.Event) -> None:
    unhandled: list[Any] = []
    before, threading.excepthook = threading.excepthook, unhandled.append

    def fail() -> None:
        gate.wait(LONG_S)
        raise SystemExit("late")

    try:
        overruns(threads, fail, "fails late")
        gate.set()
        assert gone("fails late")
    finally:
        threading.excepthook = before
    assert not unhandled


def test_what_is_thread_local_lasts(threads: TimedThreads) -> None:
    local = threading.local()

    def count() -> int:
        local.calls = getattr(local, "calls", 0) + 1
        return int(local.calls)

    assert [call(threads, count) for _ in range(3)] == [1, 2, 3]


def test_values_and_errors_are_not_kept(threads: TimedThreads) -> None:
    class Large:
        pass

    def give() -> Large:
        return Large()

    def fail() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        raise ValueError

    kept = [weakref.ref(call(threads, give))]
    with pytest.raises(ValueError):
        call(threads, fail)
    gc.collect()
    assert [one() for one in kept] == [None, None]


def test_it_is_said_when_twice_as_many_are_left(
    threads: TimedThreads, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, LOGGER.name):
        for _ in range(5):
            overruns(threads, lambda: gate.wait(LONG_S), "hangs")
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(" in this")[0] for line in said] == [
        "1 call of task 'hangs'",
        "2 calls of task 'hangs'",
        "4 calls of task 'hangs'",
    ]
    gate.set()
    assert gone("hangs")


def test_threads_end_when_closed(threads: TimedThreads) -> None:
    ran_in: list[threading.Thread] = []
    call(threads, lambda: ran_in.append(threading.current_thread()))
    threads.close()
    ran_in[0].join(10)
    assert not ran_in[0].is_alive()
    # One that was in use meanwhile ends as well.
    call(threads, lambda: ran_in.append(threading.current_thread()))
    ran_in[1].join(10)
    assert not ran_in[1].is_alive()


def test_the_function_may_secede_and_rejoin(
    threads: TimedThreads, pool: ThreadPoolExecutor
) -> None:
    def wait_for_another() -> int:
        secede()
        try:
            return pool.submit(lambda: 5).result(30)
        finally:
            rejoin()

    for _ in range(3):
        assert pool.submit(call, threads, wait_for_another).result(60) == 5
    assert pool.submit(lambda: len(pool._threads)).result(30) == 1


def test_a_function_that_seceded_and_overran_costs_no_place(
    threads: TimedThreads, pool: ThreadPoolExecutor, gate: threading.Event
) -> None:
    late: list[BaseException] = []

    def secede_and_hang() -> None:
        secede()
        gate.wait(LONG_S)
        try:
            rejoin()
        except BaseException as error:
            late.append(error)

    with pytest.raises(TaskRunTimeoutError):
        pool.submit(call, threads, secede_and_hang, SHORT_S, "secedes").result(60)
    assert pool.submit(lambda: 5).result(30) == 5
    gate.set()
    assert gone("secedes")
    assert late  # it is in no pool any more
    assert [pool.submit(lambda: 6).result(30) for _ in range(3)] == [6, 6, 6]
    assert pool.submit(lambda: len(pool._threads)).result(30) == 1


def test_one_that_overran_cannot_secede(
    threads: TimedThreads, pool: ThreadPoolExecutor, gate: threading.Event
) -> None:
    late: list[BaseException] = []

    def hang_and_secede() -> None:
        gate.wait(LONG_S)
        try:
            secede()
        except BaseException as error:
            late.append(error)

    def two_calls() -> bool:
        overruns(threads, hang_and_secede, "late")
        gate.set()
        assert gone("late")
        return call(threads, lambda: bool(thread_state.proceed))

    assert pool.submit(two_calls).result(60)
    assert late
    assert pool.submit(lambda: len(pool._threads)).result(30) == 1


def test_rejoining_when_the_time_is_over_costs_no_place(
    threads: TimedThreads, pool: ThreadPoolExecutor, gate: threading.Event
) -> None:
    seceded = threading.Event()

    def secede_and_rejoin() -> None:
        secede()
        seceded.set()
        rejoin()  # no place is free before the gate opens

    first = pool.submit(call, threads, secede_and_rejoin, 1.0, "rejoins")
    assert seceded.wait(30)
    busy = pool.submit(gate.wait, LONG_S)
    # It may have rejoined before the other began; then it has ended in time.
    ended = first.exception(60)
    assert ended is None or isinstance(ended, TaskRunTimeoutError)
    gate.set()
    assert busy.result(30)
    assert gone("rejoins")
    assert [pool.submit(lambda: 6).result(30) for _ in range(3)] == [6, 6, 6]
    assert pool.submit(lambda: len(pool._threads)).result(30) == 1
