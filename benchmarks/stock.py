"""`task.map` with the stock runner and with ours; the API is asked what it has recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect_dask.task_runners import DaskTaskRunner

from benchmarks import targets
from benchmarks.cluster import Cluster
from benchmarks.evolving import runner_on
from benchmarks.pairing import over
from benchmarks.sizes import Sizes
from benchmarks.table import Row, Spread, Target, short
from benchmarks.work import check, process_task

TITLE = "task.map beside the stock runner"
READING = (
    "task runs a second over those of `prefect_dask.DaskTaskRunner`, up to the last result, in "
    "turns; more is better. Every item is a task run; how many of them the API has as Completed, "
    "and how long after the last result, is asked of it"
)
STOCK = "prefect_dask.DaskTaskRunner"
NO_PROGRESS_S = 60.0  # after which a task run that the API does not have is not coming


@dataclass(frozen=True, slots=True)
class Mapped:
    """How a `task.map` went.

    Args:
        rate: task runs a second, up to the last result.
        completed: task runs that the API has as Completed.
        recorded_after_s: seconds from the last result until it had them.
    """

    rate: float
    completed: int
    recorded_after_s: float


def measure(cluster: Cluster, sizes: Sizes) -> Iterator[Row]:
    """Measure both runners in turns."""
    runners: dict[str, tuple[Callable[[], Any], int]] = {
        STOCK: (lambda: DaskTaskRunner(address=cluster.address), sizes.stock_items),
        "EvolveTaskRunner": (lambda: runner_on(cluster.address), sizes.runner_items),
    }
    found = mapped_in_turns(runners, sizes.repeats)
    stock = [one.rate for one in found[STOCK]]
    for name, (_, count) in runners.items():
        target = targets.TASK_RUNS if name != STOCK else None
        yield map_row(name, count, found[name], stock, target)


def mapped_in_turns(
    runners: Mapping[str, tuple[Callable[[], Any], int]], repeats: int
) -> dict[str, list[Mapped]]:
    """Map with each runner, then with each of them again.

    Args:
        runners: by name, what makes one, and how many items it gets.
        repeats: N >= 1 rounds.
    """
    found: dict[str, list[Mapped]] = {name: [] for name in runners}
    for make, _ in runners.values():
        mapped(make(), 2)  # the first tasks pay for imports
    for _ in range(repeats):
        for name, (make, count) in runners.items():
            found[name].append(mapped(make(), count))
    return found


def map_row(
    name: str,
    count: int,
    found: list[Mapped],
    beside: list[float],
    target: Target | None = None,
) -> Row:
    """One runner, beside the rates of another that ran in turns with it."""
    own = [one.rate for one in found]
    rate, after = Spread.of(own).median, Spread.of([one.recorded_after_s for one in found]).median
    fewest = min(one.completed for one in found)
    if target is not None and fewest < count:
        raise RuntimeError(f"{name}: {fewest} of {count} task runs are Completed in the API")
    return Row(
        f"{name}, task.map",
        f"{count} items",
        over(own, beside),
        f"{short(rate)} task runs/s; {fewest} of {count} Completed in the API, {after:.1f} s later",
        rate,
        target,
    )


def mapped(runner: Any, count: int) -> Mapped:
    """Map trivial items in a flow run of its own, and wait until the API has all of them."""
    ended: list[tuple[float, float, str]] = []
    results: list[int] = []

    @flow(name="benchmark-map", task_runner=cast(Any, runner))
    def mapping() -> None:
        begun = time.perf_counter()
        results.extend(process_task.map(range(count)).result())
        now = time.perf_counter()
        ended.append((now - begun, now, str(flow_run.id)))

    mapping()
    check(results, range(1, count + 1), "task.map")
    seconds, at, run_id = ended[0]
    completed, recorded_at = _completed(run_id, count)
    return Mapped(count / seconds, completed, recorded_at - at)


def _completed(run_id: str, count: int) -> tuple[int, float]:
    """How many task runs are Completed in the API, and since when it has not been fewer."""
    known, changed_at = -1, time.perf_counter()
    filters = {
        "flow_runs": {"id": {"any_": [run_id]}},
        "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
    }
    with get_client(sync_client=True) as client:
        while known < count and time.perf_counter() - changed_at < NO_PROGRESS_S:
            answer = client.request("POST", "/task_runs/count", json=filters)
            if (now := int(answer.raise_for_status().json())) != known:
                known, changed_at = now, time.perf_counter()
            if known < count:
                time.sleep(0.25)
    return known, changed_at
