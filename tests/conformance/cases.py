"""The cases of the conformance suite, each with what must come out of it.

What is expected is worked out here in plain Python, not taken from another strategy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from prefect import task
from prefect.context import TaskRunContext

from evolve_tasks import tolerate

Expected = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A call of `evolve` and the outcome it must have.

    Args:
        name: its name in the test's id.
        sources: makes the sources; a fresh iterable for each run.
        parse: the expanding stage.
        process: the processing stage.
        results: what must be in `results`, in order.
        failures: `(stage position, index, error type)` of each failure, in order.
        options: options of the call.
        raises: the run must raise `EvolveFailed`.
        attempts: attempts of each failure.
    """

    name: str
    sources: Callable[[], Iterable[Any]]
    parse: Any
    process: Any
    results: list[Any]
    failures: list[tuple[int, tuple[int, ...], str]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    raises: bool = False
    attempts: int = 1
    items: int | None = None

    @property
    def discovered(self) -> int:
        """Items of the last stage."""
        if self.items is not None:
            return self.items
        lost = sum(1 for stage, _, _ in self.failures if stage == 1)
        return len(self.results) + lost


# -- stages: tasks, async tasks, functions -----------------------------------------------------


@task
def count_up(n: int) -> list[int]:
    """Give n items that can be told apart."""
    return [n * 1000 + i for i in range(n)]


@task
def double(x: int) -> int:
    """Twice the item."""
    return 2 * x


@task
async def count_up_async(n: int) -> list[int]:
    """The same, awaited."""
    return [n * 1000 + i for i in range(n)]


@task
async def double_async(x: int) -> int:
    """The same, awaited."""
    return 2 * x


def count_up_plain(n: int) -> list[int]:
    """The same without Prefect."""
    return [n * 1000 + i for i in range(n)]


def double_plain(x: int) -> int:
    """The same without Prefect."""
    return 2 * x


async def double_plain_async(x: int) -> int:
    """The same without Prefect, awaited."""
    return 2 * x


def count_up_lazily(n: int) -> Iterable[int]:
    """A generator as an expanding stage."""
    for i in range(n):
        yield n * 1000 + i


@task
def odd_sources_fail(n: int) -> list[int]:
    """Fail for odd sources."""
    if n % 2:
        raise ValueError(f"source {n} is odd")
    return [n * 1000 + i for i in range(n)]


@task
def odd_items_fail(x: int) -> int:
    """Fail for odd items."""
    if x % 2:
        raise KeyError(f"item {x} is odd")
    return 2 * x


@task
def fails(_: Any) -> Any:
    """Fail for everything."""
    raise RuntimeError("nothing works")


@task(retries=2)
def fails_thrice(_: Any) -> Any:
    """Fail for everything, each time."""
    raise RuntimeError("nothing works")


@task(retries=2)
def succeeds_at_third(x: int) -> int:
    """Fail twice for each item."""
    context = TaskRunContext.get()
    assert context is not None
    if context.task_run.run_count < 3:
        raise ConnectionError(f"attempt {context.task_run.run_count}")
    return 2 * x


def repeat_zero(n: int) -> list[float]:
    """Equal items: each must be worked on."""
    return [0.0] * n


@task
def add_one(x: float) -> float:
    """One more."""
    return x + 1


@task
def one_each(x: Any) -> list[Any]:
    """The source as its own only item."""
    return [x]


@task
def give_none(x: int) -> None:
    """A result that is None."""


@task
def give_exception(x: int) -> Exception:
    """An exception as a value, not raised."""
    return ValueError(x)


@task
def give_array(x: int) -> np.ndarray[Any, Any]:
    """An array."""
    return np.full(3, x)


@task
def give_big_string(x: int) -> str:
    """Two million characters."""
    return str(x) * 2_000_000


@task
def same(x: Any) -> Any:
    """The item."""
    return x


@task
def give_lock(x: int) -> Any:
    """A value that cannot be pickled, for odd items."""
    return threading.Lock() if x % 2 else x


def give_lock_plain(x: int) -> Any:
    """The same without Prefect."""
    return threading.Lock() if x % 2 else x


def exits(x: int) -> int:
    """A parser that calls sys.exit must cost its item only."""
    raise SystemExit(3)


def wrong_kind(kind: str) -> Any:
    """Everything that an expanding stage must not return."""
    return {
        "string": "abc",
        "bytes": b"abc",
        "none": None,
        "number": 7,
        "mapping": {"a": 1},
        "list": [1, 2],
    }[kind]


def _doubled(sources: Iterable[int]) -> list[int]:
    return [2 * (n * 1000 + i) for n in sources for i in range(n)]


def _case(name: str, sources: Any, parse: Any, process: Any, results: Any, **rest: Any) -> Case:
    make = sources if callable(sources) else (lambda: sources)
    return Case(name, make, parse, process, list(results), **rest)


SKEWED = [3, 0, 500, 1, 0, 40]
SKEWED_A_LITTLE = [3, 0, 20, 1, 0, 5]  # where each item may be a task run
SMALL = [3, 0, 2, 1]
ODD = [4, 1, 3, 2]
QUIET = {"record": "sources"}

CASES = [
    _case("no sources", [], count_up, double, []),
    _case("no items", [0, 0, 0], count_up, double, []),
    _case("one item", [1], count_up, double, [2000]),
    _case("small", SMALL, count_up, double, _doubled(SMALL)),
    _case("skewed", SKEWED, count_up, double, _doubled(SKEWED), options=QUIET),
    _case("skewed a little", SKEWED_A_LITTLE, count_up, double, _doubled(SKEWED_A_LITTLE)),
    _case(
        "skewed in batches",
        SKEWED,
        count_up,
        double,
        _doubled(SKEWED),
        options={"batch": 7, **QUIET},
    ),
    _case("narrow window", SMALL, count_up, double, _doubled(SMALL), options={"in_flight": 1}),
    _case("lazy sources", lambda: (n for n in SMALL), count_up, double, _doubled(SMALL)),
    _case("a source twice", [2, 2, 1, 2], count_up, double, _doubled([2, 2, 1, 2])),
    _case("async tasks", SMALL, count_up_async, double_async, _doubled(SMALL)),
    _case("sync and async", SMALL, count_up, double_async, _doubled(SMALL)),
    _case("async unrecorded", SMALL, count_up, double_async, _doubled(SMALL), options=QUIET),
    _case("plain functions", SMALL, count_up_plain, double_plain, _doubled(SMALL)),
    _case("plain async", SMALL, count_up_plain, double_plain_async, _doubled(SMALL)),
    _case("task and function", SMALL, count_up, double_plain, _doubled(SMALL)),
    _case("function and task", SMALL, count_up_plain, double, _doubled(SMALL)),
    _case("generator", SMALL, count_up_lazily, double, _doubled(SMALL)),
    _case("builtins", [3, 2], range, abs, [0, 1, 2, 0, 1]),
    _case("equal items", [50, 50], repeat_zero, add_one, [1.0] * 100, options=QUIET),
    _case("equal items recorded", [5, 5], repeat_zero, add_one, [1.0] * 10),
    _case("none", [1, 2], one_each, give_none, [None, None]),
    _case("exceptions as values", [1, 2], one_each, give_exception, [ValueError(1), ValueError(2)]),
    _case("arrays", [1, 2], one_each, give_array, [np.full(3, 1), np.full(3, 2)]),
    _case("big strings", [1, 2], one_each, give_big_string, ["1" * 2_000_000, "2" * 2_000_000]),
    _case(
        "items of any kind",
        [None, "text", b"bytes", (1, 2), {"a": [1]}, [[]], 1.5, frozenset({1}), ValueError("v")],
        one_each,
        same,
        [None, "text", b"bytes", (1, 2), {"a": [1]}, [[]], 1.5, frozenset({1}), ValueError("v")],
    ),
    _case(
        "parse fails",
        ODD,
        odd_sources_fail,
        double,
        _doubled([4, 2]),
        failures=[(0, (1,), "ValueError"), (0, (2,), "ValueError")],
        raises=True,
    ),
    _case(
        "process fails",
        [2, 3],
        count_up,
        odd_items_fail,
        [4000, 6000, 6004],
        failures=[(1, (0, 1), "KeyError"), (1, (1, 1), "KeyError")],
        raises=True,
    ),
    _case(
        "both fail",
        ODD,
        odd_sources_fail,
        odd_items_fail,
        [8000, 8004, 4000],
        failures=[
            (1, (0, 1), "KeyError"),
            (1, (0, 3), "KeyError"),
            (0, (1,), "ValueError"),
            (0, (2,), "ValueError"),
            (1, (3, 1), "KeyError"),
        ],
        raises=True,
    ),
    _case(
        "all sources fail",
        [1, 2],
        fails,
        double,
        [],
        failures=[(0, (0,), "RuntimeError"), (0, (1,), "RuntimeError")],
        raises=True,
    ),
    _case(
        "all items fail",
        [2, 1],
        count_up,
        fails,
        [],
        failures=[
            (1, (0, 0), "RuntimeError"),
            (1, (0, 1), "RuntimeError"),
            (1, (1, 0), "RuntimeError"),
        ],
        raises=True,
    ),
    _case("retries succeed", [5, 2], count_up, succeeds_at_third, _doubled([5, 2])),
    _case(
        "retries succeed unrecorded",
        [4, 6],
        count_up,
        succeeds_at_third,
        _doubled([4, 6]),
        options={"batch": 3, **QUIET},
    ),
    _case(
        "retries fail",
        [1],
        count_up,
        fails_thrice,
        [],
        failures=[(1, (0, 0), "RuntimeError")],
        attempts=3,
        raises=True,
    ),
    _case(
        "retries fail unrecorded",
        [1],
        count_up,
        fails_thrice,
        [],
        failures=[(1, (0, 0), "RuntimeError")],
        attempts=3,
        raises=True,
        options=QUIET,
    ),
    _case(
        "retried parse fails",
        [1],
        fails_thrice,
        double,
        [],
        failures=[(0, (0,), "RuntimeError")],
        attempts=3,
        raises=True,
    ),
    _case(
        "unpicklable results",
        [3],
        count_up,
        give_lock,
        [3000, 3002],
        failures=[(1, (0, 1), "Unpicklable")],
        raises=True,
    ),
    _case(
        "unpicklable in a batch",
        [3],
        count_up,
        give_lock_plain,
        [3000, 3002],
        failures=[(1, (0, 1), "Unpicklable")],
        raises=True,
        options={"batch": 3},
    ),
    _case(
        "exits",
        [1],
        count_up,
        exits,
        [],
        failures=[(1, (0, 0), "SystemExit")],
        raises=True,
    ),
    _case(
        "wrong kinds",
        ["string", "bytes", "none", "number", "mapping", "list"],
        wrong_kind,
        same,
        [1, 2],
        failures=[(0, (i,), "TypeError") for i in range(5)],
        raises=True,
    ),
    _case(
        "ignored",
        [3],
        count_up,
        odd_items_fail,
        [6000, 6004],
        failures=[(1, (0, 1), "KeyError")],
        options={"on_failure": "ignore"},
    ),
    _case(
        "tolerated count",
        [3],
        count_up,
        odd_items_fail,
        [6000, 6004],
        failures=[(1, (0, 1), "KeyError")],
        options={"on_failure": tolerate(count=1)},
    ),
    _case(
        "tolerated ratio",
        [3],
        count_up,
        odd_items_fail,
        [6000, 6004],
        failures=[(1, (0, 1), "KeyError")],
        options={"on_failure": {"ratio": 0.34}},
    ),
    _case(
        "not tolerated ratio",
        [3],
        count_up,
        odd_items_fail,
        [6000, 6004],
        failures=[(1, (0, 1), "KeyError")],
        # One batch: judged as soon as all is known, it would else stop before the last item.
        options={"on_failure": {"ratio": 0.3}, "batch": 3},
        raises=True,
    ),
]

# Where what is finished when it stops depends on the order of things, these alone are compared.
STOPPING = [
    _case(
        "fail fast",
        [30, 30],
        count_up_plain,
        fails,
        [],
        options={"on_failure": "fail_fast", "in_flight": 2},
        raises=True,
        items=60,
    ),
    _case(
        "spent count",
        [30, 30],
        count_up_plain,
        fails,
        [],
        options={"on_failure": {"count": 2}, "in_flight": 2},
        raises=True,
        items=60,
    ),
]
